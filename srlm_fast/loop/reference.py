"""The reference of a round's DPO: a model's log-probs of the pairs, kept with them.

Under `--reference round` it is the model that the round starts from and that answered; under `sft`
it is M1 in every round, whose weights take the place of the live ones while they are needed. Each
pair row says by `ref_key` for which weights and which tokens its log-probs hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srlm_fast.model import Model
from srlm_fast.records import read_jsonl
from srlm_fast.train import TokenPair, pair_logps

from .state import ModelFolder
from .weights import WeightsOf

if TYPE_CHECKING:
    from .loop import Run

REFERENCE_ROWS = 64  # pairs whose log-probs are taken at a time

Row = dict[str, Any]
Progress = Callable[[int], None]


class Reference:
    """The reference of the round that makes the model of `folder`. path: the rows that it writes,
    None for the round's own pairs.
    """

    def __init__(self, run: Run, folder: ModelFolder, path: Path | None = None) -> None:
        self.run, self.path = run, path or folder.pairs
        self.live = run.folders[folder.number - 2]
        self.source = run.folders[0] if run.config.reference == "sft" else self.live
        self.weights = run.weights_hash(self.source.model)

    def write(self, rows: Sequence[Row], pairs: Sequence[TokenPair], progress: Progress) -> None:
        """Append the pair rows with their log-probs; goes on behind those written."""
        # Whole groups only: log-probs are computed in the same company as in an unbroken run.
        ranks, written = self.run.ranks, read_jsonl(self.path)
        ranks.wait()  # until all have read them
        done = len(written) - len(written) % REFERENCE_ROWS
        done = done if len(written) < len(rows) else len(rows)
        if done < len(written):
            ranks.write(self.path, written[:done])
        with self.in_place(), ranks.writing(self.path) as writer:
            for group in self.computed(self.run.model, rows, pairs, done):
                writer.write(*group)
                done += len(group)
                progress(done)

    def renewed(self, rows: list[Row], pairs: Sequence[TokenPair]) -> list[Row]:
        """The rows themselves, or, where some have log-probs of other weights or tokens than theirs
        are now, all of them computed and written anew.
        """
        stale = sum(row.get("ref_key") != self.key(p) for row, p in zip(rows, pairs, strict=True))
        if not stale:
            return rows
        self.run.display.note(
            f"{self.path}: {stale} of {len(rows)} reference log-probs are of other weights or "
            "tokens than they stand for, computed again"
        )
        self.run.sampler.release()
        with self.in_place():
            rows = [r for group in self.computed(self.run.model, rows, pairs) for r in group]
        self.run.ranks.write(self.path, rows)
        return rows

    def computed(
        self, model: Model, rows: Sequence[Row], pairs: Sequence[TokenPair], start: int = 0
    ) -> Iterator[list[Row]]:
        """Rows from `start` on with `ref_logps` and `ref_key`, by groups."""
        dpo = self.run.config.dpo
        settings: Any = {
            "micro_batch_tokens": dpo.micro_batch_tokens,
            "share_prompts": dpo.share_prompts,
        }
        for first in range(start, len(rows), REFERENCE_ROWS):
            part = slice(first, first + REFERENCE_ROWS)
            found = pair_logps(model, pairs[part], **settings, **self.run.ranks.over_mesh)
            logps = zip(*(side.tolist() for side in found), strict=True)
            yield [
                row | {"ref_logps": {"chosen": c, "rejected": r}, "ref_key": self.key(pair)}
                for row, pair, (c, r) in zip(rows[part], pairs[part], logps, strict=True)
            ]

    def in_place(self) -> Any:
        """The reference's weights in the model's tensors."""
        if self.source is self.live:
            return nullcontext()
        return WeightsOf(self.run, self.source, back=self.live)

    def key(self, pair: TokenPair) -> str:
        """A hash of the reference's weights and the pair's tokens."""
        digest = hashlib.blake2b(self.weights.encode(), digest_size=8)
        for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
            digest.update(len(ids).to_bytes(8, "little") + np.array(ids, np.int64).tobytes())
        return digest.hexdigest()
