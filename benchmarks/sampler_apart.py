"""An engine in a process of its own, asked for one turn after the other.

So its peak of memory is its own, a rival that dies takes nobody with it, and the turns of all can
still be interleaved: a process that is not asked sleeps.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import harness
from benchmarks.sampler_work import Work

PATIENCE_SECONDS = 900.0


@dataclass(frozen=True)
class Place:
    """What is built in the process, and on which cores."""

    kind: str
    model: str
    work: Work
    cores: tuple[int, ...]


class Apart:
    """Calls go to the engine in the process; its exceptions come back as RuntimeError."""

    def __init__(self, place: Place) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, place), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.settings: str = self._answer()
        except Exception:
            self.close()
            raise

    def ask(self, method: str, *arguments: Any) -> Any:
        self._line.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        if not self._line.poll(PATIENCE_SECONDS):
            raise RuntimeError(f"no answer in {PATIENCE_SECONDS:.0f} s")
        try:
            fine, answer = self._line.recv()
        except EOFError:
            self._process.join(5)
            raise RuntimeError(f"its process died: exit {self._process.exitcode}") from None
        if not fine:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self._line.close()  # the process sees the end and leaves
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(line: Connection, place: Place) -> None:
    """In the process: build, then answer until the line is closed."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.cores)
    import torch

    torch.set_num_threads(len(place.cores))
    from benchmarks.sampler_engine import measured_turn
    from benchmarks.sampler_models import DTYPES, MODELS, make_model
    from benchmarks.sampler_variants import kind_named

    try:
        kind = kind_named(place.kind, "cpu", place.model)
        kind.load()
        baseline = harness.resident_bytes()
        model = make_model(MODELS[place.model], "cpu", DTYPES[kind.dtype])
        engine = kind.build(model, place.work, len(place.cores))
        del model
        line.send((True, engine.settings))
    except Exception as error:
        line.send((False, harness.one_line(error)))
        return
    while True:
        try:
            method, arguments = line.recv()
        except EOFError:
            engine.close()
            return
        try:
            if method == "turn":
                answer = measured_turn(engine, "cpu", *arguments, baseline=baseline)
            else:
                answer = getattr(engine, method)(*arguments)
            line.send((True, answer))
        except Exception as error:
            line.send((False, harness.one_line(error)))
