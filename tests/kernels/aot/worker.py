"""python -m tests.kernels.aot.worker ARCH[,ARCH...] MODULE...: compile what the modules launch.

One JSON line per kernel compiled, after one per launch that says what it launched or how it failed.
Registers, stack and spills are what ptxas says of the kernel; its matrix instructions are told by
their names in PTX, each of which becomes the one of its kind in SASS. To disassemble every kernel
would take longer than to compile it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from io import StringIO
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from srlm_fast.kernels import jit

# The instruction's name in PTX.
TENSOR_CORE = {"HGMMA": r"\bwgmma\.mma", "UTCMMA": r"\btcgen05\.mma", "HMMA": r"\bmma\.sync"}
USED = {  # in the log of ptxas
    "registers": r"Used (\d+) registers",
    "stack": r"(\d+) bytes stack frame",
    "spills": r"(\d+) bytes spill stores",
    "reloads": r"(\d+) bytes spill loads",
}


class Driver:
    """What the launch path asks of a driver, answered for a card that is not there."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        """A device for each architecture: triton keeps what it compiled by device."""
        return self.target.arch

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_only() -> list[tuple[str, Any]]:
    """From here on a launch compiles; returns the list to which it adds (name, kernel)."""
    launched = []
    run, make_cubin = JITFunction.run, CUDABackend.make_cubin

    def warmup(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        launched.append((self.fn.__name__, kernel))
        return kernel

    def logged(self: CUDABackend, src: str, metadata: dict[str, Any], *rest: Any) -> bytes:
        """Its log becomes part of the kernel, and so of triton's cache."""
        with redirect_stdout(StringIO()) as log:
            cubin = make_cubin(self, src, metadata, *rest)
        metadata["ptxas"] = log.getvalue()
        return cubin

    JITFunction.run, CUDABackend.make_cubin = warmup, logged
    triton.knobs.nvidia.dump_ptxas_log = True
    jit.runs_triton = lambda x: True
    return launched


def arguments(kernel: Any) -> dict[str, Any]:
    """Constants by their value, pointers by their type."""
    names = kernel.src.fn.arg_names
    types = {name: kind for name, kind in kernel.src.signature.items() if str(kind).startswith("*")}
    values = {names[path[0]]: value for path, value in kernel.src.constants.items()}
    return types | {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}


@cache
def measure(kernel: Any) -> dict[str, Any]:
    """Resources in bytes and registers per thread; instruction counts; rows of the largest dot."""
    used = {
        name: max(map(int, re.findall(words, kernel.metadata.ptxas)))
        for name, words in USED.items()
    }
    dots = re.findall(r"tt\.dot\b.*-> tensor<(?:\d+x)*?(\d+)x\d+x[a-z]", kernel.asm["ttir"])
    found = {name: len(re.findall(words, kernel.asm["ptx"])) for name, words in TENSOR_CORE.items()}
    return used | {
        "arguments": arguments(kernel),
        "num_warps": kernel.metadata.num_warps,
        "num_stages": kernel.metadata.num_stages,
        "shared": kernel.metadata.shared,
        "dot_rows": max(map(int, dots), default=0),
        "tensor_core": {name: count for name, count in found.items() if count},
    }


def records(arch: int, module: str, launched: list[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    seen = {}
    for launch in import_module(module).launches(arch):
        first, error = len(launched), None
        try:
            launch.call()
        except Exception:
            error = "".join(traceback.format_exc().splitlines(keepends=True)[-12:])
        where = {"module": module, "arch": arch, "launch": launch.name}
        new = launched[first:]
        yield where | {
            "error": error,
            "matmul": sorted(launch.matmul),
            "launched": sorted({name for name, _ in new}),
        }
        for name, kernel in new:
            matmul = name in launch.matmul
            if seen.get(kernel) != matmul:
                seen[kernel] = matmul
                yield where | {"kernel": name, "matmul": matmul} | measure(kernel)


def main() -> None:
    if "TRITON_INTERPRET" in os.environ:
        sys.exit("TRITON_INTERPRET is set: nothing would be compiled")
    archs, *modules = sys.argv[1:]
    launched = compile_only()
    for arch in map(int, archs.split(",")):
        triton.runtime.driver.set_active(Driver(arch))
        for module in modules:
            for record in records(arch, module, launched):
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
