"""Functions run by several processes that form one run, as torchrun would start it, on the CPU.

A fork server imports what is slow once; ranks are forked from a process that has no threads, and
stay for the next function.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

PRELOAD = [
    *("torch.distributed.tensor", "torch.distributed.fsdp"),
    *("tests.dist.cases", "tests.dist.training", "tests.loop.rank_cases"),
]
SECONDS = 200


class Ranks:
    """`ranks(function, *args)`: what the function returns on each rank. An error of one rank is
    raised here with its traceback; the others, which may be waiting for it, are stopped.

    A function is found by its name, so it must stand at the top of a module.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send_bytes(pickle.dumps((function, args)))
        results: dict[int, Any] = {}
        try:
            while len(results) < self.count:
                results |= self._next(set(range(self.count)) - results.keys())
        except BaseException:
            self.stop()
            raise
        return [results[rank] for rank in range(self.count)]

    def _start(self) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        # The agent's store, as with torchrun: no other can take its port between two lines.
        self._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        ends = [context.Pipe() for _ in range(self.count)]
        self._connections: list[Connection] = [here for here, _ in ends]
        for rank, (_, there) in enumerate(ends):
            args = (rank, self.count, self._store.port, there)
            self._processes.append(context.Process(target=_serve, args=args, daemon=True))
            self._processes[-1].start()
            there.close()

    def _next(self, missing: set[int]) -> dict[int, Any]:
        waiting = [self._connections[rank] for rank in missing]
        ready = wait(waiting, timeout=SECONDS)
        if not ready:
            raise TimeoutError(f"ranks {sorted(missing)}: no answer in {SECONDS} s")
        found = {}
        for rank in missing:
            if self._connections[rank] in ready:
                try:
                    ok, value = pickle.loads(self._connections[rank].recv_bytes())
                except EOFError:
                    raise RuntimeError(f"rank {rank}: its process has ended") from None
                if not ok:
                    raise RuntimeError(f"rank {rank}:\n{value}")
                found[rank] = value
        return found

    def stop(self) -> None:
        """End the processes; the next call starts new ones."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []


def _serve(rank: int, count: int, port: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    while True:
        function, args = pickle.loads(connection.recv_bytes())
        try:
            answer = (True, function(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))
