"""python -m tests.kernels.aot.worker ARCH MODULE...: compile what the modules launch.

One JSON line per kernel compiled, after one per launch that says what it launched or how it failed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from srlm_fast.kernels import jit

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_CORE = {"HGMMA": r"HGMMA", "UTCMMA": r"UTC[A-Z]*MMA", "HMMA": r"\bHMMA"}


class Driver:
    """What the launch path asks of a driver, answered for a card that is not there."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compile_only(arch: int) -> list[tuple[str, Any]]:
    """From here on a launch compiles; returns the list to which it adds (name, kernel)."""
    launched = []
    run = JITFunction.run

    def warmup(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        launched.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = warmup
    triton.runtime.driver.set_active(Driver(arch))
    jit.runs_triton = lambda x: True
    return launched


def disassemble(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [BIN / "cuobjdump", option, file.name],
            env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout


def arguments(kernel: Any) -> dict[str, Any]:
    """Constants by their value, pointers by their type."""
    names = kernel.src.fn.arg_names
    types = {name: kind for name, kind in kernel.src.signature.items() if str(kind).startswith("*")}
    values = {names[path[0]]: value for path, value in kernel.src.constants.items()}
    return types | {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}


@cache
def measure(kernel: Any) -> dict[str, Any]:
    """Resources in bytes and registers per thread; instruction counts; rows of the largest dot."""
    usage = disassemble(kernel.asm["cubin"], "--dump-resource-usage")
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    sass = disassemble(kernel.asm["cubin"], "-sass")
    dots = re.findall(r"tt\.dot\b.*-> tensor<(?:\d+x)*?(\d+)x\d+x[a-z]", kernel.asm["ttir"])
    return {
        "arguments": arguments(kernel),
        "num_warps": kernel.metadata.num_warps,
        "num_stages": kernel.metadata.num_stages,
        "registers": used["REG"],
        "stack": used["STACK"],
        "local": used["LOCAL"],
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        "shared": kernel.metadata.shared,
        "dot_rows": max(map(int, dots), default=0),
        "tensor_core": {
            name: count for name, p in TENSOR_CORE.items() if (count := len(re.findall(p, sass)))
        },
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
    arch, *modules = sys.argv[1:]
    launched = compile_only(int(arch))
    for module in modules:
        for record in records(int(arch), module, launched):
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
