"""The run folder as the loop sees it: which stages are finished, and where each file of a round
lies.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast.damage import METRICS_FILE, bad_metrics, read_metrics, read_state
from srlm_fast.records import InputError, Prompt, RowWriter, read_jsonl, write_json_atomic
from srlm_fast.run_folder import STATE_FILE

if TYPE_CHECKING:
    from .tracking import Tracker


class RunState:
    """`state.json`: finished stages with their seconds and figures. It moves only by atomic
    replace.

    A stage is finished when its name is in `figures`. Seconds of a stage that was broken off add up
    over the tries that ended in an orderly way. writes: whether this process keeps the files; one
    of many ranks that does not only knows what is in them. data: the user's files as figures, for
    who reads a run that is not finished. trackers: what else is told each line of `metrics.jsonl`.
    """

    def __init__(
        self, folder: Path, writes: bool = True, data: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.writes, self.data = folder, writes, data or {}
        folder.mkdir(parents=True, exist_ok=True)
        found = read_state(folder)
        self.figures: dict[str, dict[str, Any]] = found.get("stages", {})
        self.seconds: dict[str, float] = found.get("seconds", {})
        if bad := bad_metrics(folder):
            raise InputError(bad[0])
        self._metrics = RowWriter(folder / METRICS_FILE) if writes else None
        self._measured = {_key(row) for row in self.measured()}
        self.trackers: list[Tracker] = []

    def finished(self, stage: str) -> bool:
        return stage in self.figures

    def finish(self, stage: str, figures: dict[str, Any]) -> None:
        """Mark `stage` as finished; what it wrote must be on disk before."""
        self.measure({"stage": stage, "seconds": self.seconds.get(stage, 0.0), **figures})
        self.figures[stage] = figures
        self._write()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to the stage's seconds, also when it is interrupted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
            self._write()

    def measure(self, row: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`, once per stage, step and phase however often they are
        repeated.
        """
        if self._metrics is not None and _key(row) not in self._measured:
            number = len(self._measured)
            self._measured.add(_key(row))
            self._metrics.write(row)
            for tracker in self.trackers:
                tracker.log(number, row)

    def measured(self) -> list[dict[str, Any]]:
        """All lines of `metrics.jsonl`."""
        return read_metrics(self.folder)[0]

    def _write(self) -> None:
        if self.writes:
            state = {"stages": self.figures, "seconds": self.seconds, "data": self.data}
            write_json_atomic(self.folder / STATE_FILE, state)

    def close(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
        for tracker in self.trackers:
            tracker.close()


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["stage"], row.get("step"), row.get("phase")


class ModelFolder:
    """`m1/`, `m2/`, …: a model and the rows of the round that made it."""

    def __init__(self, run: Path, number: int) -> None:
        self.number = number
        self.name = f"M{number}"
        self.path = run / f"m{number}"
        self.path.mkdir(parents=True, exist_ok=True)
        self.model = self.path / "model"
        self.checkpoint = self.path / "checkpoint.pt"
        self.prompts = self.path / "prompts.jsonl"
        self.candidates = self.path / "candidates.jsonl"
        self.judgements = self.path / "judgements.jsonl"
        self.comparisons = self.path / "comparisons.jsonl"
        self.revisions = self.path / "revisions.jsonl"
        self.pairs = self.path / "pairs.jsonl"
        self.dropped = self.path / "dropped.jsonl"
        self.earlier_pairs = self.path / "earlier_pairs.jsonl"
        self.sft = self.path / "sft.jsonl"
        self.evaluation = self.path / "evaluation.jsonl"
        self.evaluation_judged = self.path / "evaluation_judged.jsonl"
        self.own_judged = self.path / "own_judged.jsonl"
        self.own_compared = self.path / "own_compared.jsonl"
        self.judge_evaluation = self.path / "judge_evaluation.jsonl"

    def stage(self, name: str) -> str:
        return f"m{self.number}/{name}"

    def read_prompts(self) -> list[Prompt]:
        return [Prompt(**row) for row in read_jsonl(self.prompts)]


def derive_seed(seed: int, *parts: Any) -> int:
    """A 63-bit seed for one purpose; other purposes of the same run get unrelated ones."""
    text = "\x1f".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def weights_hash(folder: Path) -> str:
    """A short content hash of a model folder's weights, for the provenance of rows."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
