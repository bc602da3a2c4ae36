"""Who may import whom, read from the syntax trees; importing touches no device or network."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import srlm_fast

PACKAGE = Path(srlm_fast.__file__).parent
ROOT = PACKAGE.parent

STAGES = {"data", "sampler", "judge", "train", "eval", "model", "kernels", "report", "tiny", "dist"}
# Each part of the package -> the other parts it may import. `records` is for everybody but kernels
# and dist.
ALLOWED: dict[str, set[str]] = {
    "records": set(),
    "dist": set(),
    "kernels": {"_native"},
    "model": {"kernels", "records", "run_models"},
    "sampler": {"model", "kernels", "records"},
    "judge": {"kernels", "records"},
    "data": {"kernels", "records"},
    "train": {"model", "kernels", "dist", "records"},
    "eval": {"records", "judge"},
    "report": {"records", "judge", "options", "damage"},
    # The embedded default is data; only the script that made its weights uses the stages.
    "tiny": {"records", "judge", "data", "model", "train"},
    "options": {"records"},
    "defaults": {"options"},
    "run_folder": {"records"},
    "damage": {"records", "run_folder"},
    "run_models": {"records", "options", "run_folder", "damage"},
    "config": {"records", "options", "run_folder", "run_models", *STAGES},
    "loop": {"records", "run_folder", "run_models", "damage", "config", *STAGES},
    "plan": {"records", "options", "config", "data", "model", "tiny", "train"},
    "unused": {"records", "options", "config"},
    "run": {
        *("records", "options", "run_folder", "config", "unused", "plan", "loop", "report"),
        *("damage", "defaults", "provenance", "model"),
    },
    "report_command": {"records", "run", "report", "damage"},
    "provenance": {"records", "run_folder"},
    "judge_options": {"options", "run", "config"},
    "judge_command": {
        "plan",
        *(
            "records",
            "options",
            "run_folder",
            "config",
            "loop",
            "run",
            "provenance",
            "judge_options",
        ),
        *("data", "eval", "model", "report"),
    },
    "compare": {
        *("records", "options", "run_folder", "run_models", "config", "plan", "loop", "run"),
        *("provenance", "judge_options", "data", "eval", "model", "report"),
    },
    "data_command": {"records", "options", "run_folder", "run", "data", "judge", "report"},
    "export": {
        *("records", "options", "run_folder", "run_models", "config", "run", "provenance"),
        *("judge_command", "damage"),
        *("data", "eval", "model", "report", "sampler"),
    },
    "__init__": {"model", "sampler"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """The first name below the package: a folder, or a file's stem."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports, at any depth of its tree."""
    package = name_of(path).split(".")
    if path.stem != "__init__":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    """Parts of the package that a file imports, its own left out."""
    found = set()
    for name in imported(path):
        root, _, rest = name.partition(".")
        part = rest.split(".")[0]
        exists = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
        if root == "srlm_fast" and (exists or part == "_native"):
            found.add(part)
    return found - {part_of(path)}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_downward(path: Path):
    part = part_of(path)
    assert part in ALLOWED, f"{part}: a new part of the package, wanted a row in ALLOWED"
    assert parts_imported(path) <= ALLOWED[part]


def test_the_rule_itself_has_no_way_up():
    below: dict[str, set[str]] = {}
    left = dict(ALLOWED)
    while left:
        free = [part for part, uses in left.items() if not uses & left.keys()]
        assert free, f"a cycle among {sorted(left)}"
        below |= {part: left.pop(part) for part in free}


def test_an_upward_import_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "srlm_fast"
    (package / "judge").mkdir(parents=True)
    (package / "sampler").mkdir()
    bad = package / "judge" / "bad.py"
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    for line in (
        "from srlm_fast.sampler import Sampler",
        "import srlm_fast.sampler.engine",
        "from ..sampler import Sampler",
        "from .. import sampler",
        "def f():\n    from srlm_fast import sampler",
    ):
        bad.write_text(line)
        assert parts_imported(bad) == {"sampler"}, line


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_nobody_imports_tests_or_benchmarks(folder: str):
    users = [
        name_of(path)
        for path in modules()
        if any(n.split(".")[0] == folder for n in imported(path))
    ]
    assert users == []


WATCH = """
import importlib, socket, sys
import torch
def refuse(what):
    def touched(*args, **kwargs):
        raise RuntimeError(f"importing touched {what}")
    return touched
torch.cuda._lazy_init = refuse("the device")
torch.cuda.is_available = torch.cuda.device_count = refuse("the device")
socket.socket.connect = socket.getaddrinfo = refuse("the network")
before = torch.get_default_dtype(), torch.initial_seed(), torch.get_num_threads()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert before == (torch.get_default_dtype(), torch.initial_seed(), torch.get_num_threads())
"""


def test_importing_everything_touches_no_device_and_no_network():
    names = [name_of(path) for path in modules() if path.stem != "__main__"]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_package_and_the_parser_import_no_torch():
    code = "import sys, srlm_fast, srlm_fast.run; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
