"""Every kernel, compiled for sm_80, sm_90 and sm_100 as its launcher launches it; no GPU needed.

Held to account: no register spills, shared memory within what a block may have, tensor cores in
every matmul, and a kernel for every launch in aot/launches_*.py. Selecting one op with -k compiles
that op alone, beside the faults.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from srlm_fast.kernels.jit import HAS_TRITON

ROOT = Path(__file__).parents[2]
ARCHS = (80, 90, 100)
FAULTY = "tests.kernels.aot.faulty"
FIRST_ARCH = {"quantise_rows": 89}  # without fp8 in hardware it runs in PyTorch
OPS = sorted(
    path.stem.removeprefix("launches_") for path in Path(__file__).parent.glob("aot/launches_*.py")
)
# Bytes a block can have, less what the system keeps: CUDA C++ programming guide, table of compute
# capabilities. The compiler itself does not refuse more.
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}
# The instruction of a whole warp group, which takes 64 rows of the result or more.
WIDE_MMA = {80: "HMMA", 90: "HGMMA", 100: "UTCMMA"}

pytestmark = [
    pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed"),
    pytest.mark.timeout(1200),
]
Records = list[dict[str, Any]]


def module_of(op: str) -> str:
    return f"tests.kernels.aot.launches_{op}"


def compile_into(folder: Path, archs: set[int], modules: list[str]) -> None:
    """One process for all: the records into records.jsonl, triton's cache beside them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    # The same code without its line numbers, which take a tenth of the time.
    environment |= {"TRITON_CACHE_DIR": str(folder), "TRITON_DISABLE_LINE_INFO": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.aot.worker", ",".join(map(str, archs)), *modules],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "records.jsonl").write_text(done.stdout)


def faults_of_kernel(record: dict[str, Any]) -> list[str]:
    arch, faults = record["arch"], []
    if record["stack"] or record["spills"]:
        faults.append(f"spills: {record['stack']} bytes of stack, {record['spills']} spilled")
    if record["shared"] > SHARED_LIMIT[arch]:
        faults.append(f"shared memory: {record['shared']} > {SHARED_LIMIT[arch]} bytes")
    if record["matmul"]:
        wide = record["dot_rows"] >= 64
        wanted = {WIDE_MMA[arch]} if wide else set(WIDE_MMA.values())
        if not wanted & set(record["tensor_core"]):
            faults.append(
                f"matmul of {record['dot_rows']} rows with {record['tensor_core'] or 'no'} "
                f"tensor-core instructions, wanted {' or '.join(sorted(wanted))}"
            )
    config = (
        f"{record['arguments']}, num_warps {record['num_warps']}, "
        f"num_stages {record['num_stages']}, {record['registers']} registers"
    )
    return [f"{record['kernel']} for sm_{arch}: {fault} ({config})" for fault in faults]


def faults(records: Records) -> dict[str, list[str]]:
    """Launch name -> what is wrong with it."""
    found = {}
    for record in records:
        if "kernel" in record:
            here = faults_of_kernel(record)
        else:
            missing = sorted(set(record["matmul"]) - set(record["launched"]))
            here = [record["error"]] if record["error"] else []
            here += [] if record["launched"] else ["compiled nothing"]
            here += [f"did not launch its matmul {name}" for name in missing]
        found.setdefault(record["launch"], []).extend(here)
    return {launch: here for launch, here in found.items() if here}


@pytest.fixture(scope="module")
def records(request: pytest.FixtureRequest, made_once: Callable[..., Path]) -> Records:
    """Of the selected ops and architectures, and of the faults."""
    cases = [
        item.callspec.params
        for item in request.session.items
        if getattr(item, "originalname", "") == "test_compiled_kernels"
    ]
    modules = [module_of(op) for op in sorted({case["op"] for case in cases})] + [FAULTY]
    archs = {90} | {case["arch"] for case in cases}
    folder = made_once("kernels", partial(compile_into, archs=archs, modules=modules))
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "arch, op", [(arch, op) for op in OPS for arch in ARCHS if arch >= FIRST_ARCH.get(op, 0)]
)
def test_compiled_kernels(arch: int, op: str, records: Records) -> None:
    here = [r for r in records if (r["arch"], r["module"]) == (arch, module_of(op))]
    assert here, f"launches_{op} has no launch for sm_{arch}"
    found = faults(here)
    assert not found, "\n".join(f"{name}: {line}" for name, here in found.items() for line in here)


def test_faults_are_reported(records: Records) -> None:
    faulty = [record for record in records if record["module"] == FAULTY]
    found = {launch: "\n".join(lines) for launch, lines in faults(faulty).items()}
    wanted = {
        "spills": "_sum_kernel for sm_90: spills: ",
        "no tensor cores": "matmul of 64 rows with no tensor-core instructions, wanted HGMMA",
        "too much shared memory": "shared memory: 524288 > 232448 bytes",
        "compiles nothing": "compiled nothing",
        "raises": "ZeroDivisionError: on purpose",
        "another name": "did not launch its matmul _sum_kernel",
    }
    assert found.keys() == wanted.keys(), found
    for launch, text in wanted.items():
        assert text in found[launch], found[launch]
