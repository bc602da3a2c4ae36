"""What the ranks of a test do: runs of the tiny world on a mesh, and ways to end them."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from transformers import AutoTokenizer  # noqa: F401 (imported once, before ranks are forked)

from srlm_fast import run as command
from srlm_fast.dist import device_mesh
from srlm_fast.judge import pairwise
from srlm_fast.loop import run
from srlm_fast.loop.part_files import part_of
from srlm_fast.loop.ranks import ManyRanks
from srlm_fast.records import RowWriter, read_jsonl
from tests.loop.worlds import Silent, small_config


def ranks_of(tensor: int = 1) -> ManyRanks:
    return ManyRanks(device_mesh(tensor, "cpu"))


def whole_run(
    out: str, tensor: int, changes: dict[str, Any], sharded: bool = False
) -> dict[str, Any]:
    """The summary of a run, and what this rank has shown."""
    screen, ranks = Silent(), ranks_of(tensor)
    ranks.sharded = sharded
    summary = run(small_config(Path(out), **changes), screen, ranks=ranks)
    return {"summary": summary, "stages": screen.stages}


def own_score(out: str, changes: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """M2's own score, of a model that has never compared, and the rows this rank wrote for it."""
    write, written = RowWriter.write, 0

    def count(self: RowWriter, *rows: Any) -> None:
        nonlocal written
        written += len(rows) if self.path.name.startswith("own_") else 0
        write(self, *rows)

    with patch.object(pairwise, "MIN_MASS", 0.0), patch.object(RowWriter, "write", count):
        summary = whole_run(out, 1, changes)["summary"]
    return summary["models"][1]["own_score"], written


def stopped_by_one(out: str, tensor: int, stopper: int, rows: int, changes: dict[str, Any]) -> str:
    """How a run ends when one rank is asked to stop once its data rank has written some rows."""
    ranks = ranks_of(tensor)
    own = part_of(Path(out) / "m2" / "candidates.jsonl", ranks.data)

    def stop() -> bool:
        return dist.get_rank() == stopper and len(read_jsonl(own)) >= rows

    try:
        run(small_config(Path(out), **changes), Silent(), stop, ranks)
    except KeyboardInterrupt:
        return "stopped"
    return "finished"


def status_of(work: Callable[[ManyRanks], int]) -> tuple[int, str]:
    """The exit status of this rank, and what it says."""
    ranks, said = ranks_of(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = command.end_together(ranks, lambda: work(ranks))
    return status, said.getvalue()


def trained(out: str, changes: dict[str, Any]) -> tuple[int, str]:
    """A run as the command does it, in a folder that is already its own."""
    config = small_config(Path(out), **changes)
    return status_of(lambda ranks: command.train(config, Path(out), ranks))


def command_line(argv: list[str]) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = command.main(argv)
    return status, said.getvalue()


def full_disk(out: str, rank: int, changes: dict[str, Any]) -> tuple[int, str]:
    """A run whose rows cannot be written on one rank."""
    config = small_config(Path(out), **changes)
    with failing_writes(rank, OSError(errno.ENOSPC, "No space left on device")):
        return status_of(lambda ranks: command.train(config, Path(out), ranks))


def faulty(out: str, rank: int, changes: dict[str, Any]) -> tuple[int, str]:
    """A run in which something of ours breaks on one rank."""
    config = small_config(Path(out), **changes)
    with failing_writes(rank, AssertionError("broken on purpose")):
        return status_of(lambda ranks: command.train(config, Path(out), ranks))


@contextlib.contextmanager
def failing_writes(rank: int, error: Exception) -> Iterator[None]:
    write = RowWriter.write

    def fail(self: RowWriter, *rows: Any) -> None:
        if dist.get_rank() == rank and self.path.name.startswith("candidates"):
            raise error
        write(self, *rows)

    RowWriter.write = fail  # type: ignore[method-assign]
    try:
        yield
    finally:
        RowWriter.write = write  # type: ignore[method-assign]
