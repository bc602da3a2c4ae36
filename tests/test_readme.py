"""What the README says is what the package does: its commands, its options, its Python.

`python -m tests.test_readme` writes the options table into the README again.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from srlm_fast import compare, data_command, judge_command, report_command, run
from srlm_fast import config as configs
from srlm_fast.config import Config
from srlm_fast.export import __main__ as export
from srlm_fast.model import load_model
from srlm_fast.options import GROUPS, Option
from srlm_fast.run import read_options

ROOT = Path(run.__file__).parent.parent
README = ROOT / "README.md"
MARKS = ("<!-- options: begin -->\n", "<!-- options: end -->")
# The run line at a size that takes seconds.
SMALL = (
    "--iterations 1 --num-prompts 12 --eval-count 12 --eval-samples 1 --sft-epochs 1 "
    "--judge-samples 1"
)


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)


def commands() -> list[str]:
    return [line for block in fenced("sh") for line in block.splitlines()]


def options_table() -> str:
    """Every option with its value in the three recipes."""
    recipes = (Config(), configs.paper(Config()), configs.tiny())
    rows = ["| option | default | paper | tiny | what |", "| --- | --- | --- | --- | --- |"]
    for options in GROUPS.values():
        rows += [option_row(option, recipes) for option in options]
    rows.insert(3, "| `--out FOLDER` |  |  |  | where everything is written |")
    return "\n".join(rows) + "\n"


def option_row(option: Option, recipes: tuple[Config, ...]) -> str:
    values = [shown(configs.get(made, option.path)) for made in recipes]
    if option.name in ("--model", "--recipe"):
        values = ["", "", ""]
    what = re.sub(r" \(default:.*?\)$", "", option.help).replace("|", "\\|")
    return f"| `{option.name} {option.metavar}` | " + " | ".join([*values, what]) + " |"


def shown(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_two_lines_are_the_makefiles():
    assert commands()[:2] == ["make run", "make test"]
    for target, command in (("run", "-m srlm_fast.run"), ("test", "-m pytest")):
        planned = subprocess.run(
            ["make", "--no-print-directory", "--dry-run", "--always-make", target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "-m venv .venv" in planned
        assert "pip install" in planned
        assert planned.rstrip().splitlines()[-1].startswith(f".venv/bin/python {command}")


def test_ci_runs_the_test_line_and_the_checks():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make test", "make check"]


@pytest.mark.parametrize("line", [line for line in commands() if "srlm_fast.run" in line])
def test_every_command_parses(line: str):
    launcher, options = line.split(" -m srlm_fast.run ")
    assert launcher in (".venv/bin/python", ".venv/bin/torchrun --nproc-per-node 8")
    read_options(shlex.split(options))


@pytest.mark.parametrize("line", [line for line in commands() if "srlm_fast.judge" in line])
def test_the_judge_line_measures(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    assert words[:3] == [".venv/bin/python", "-m", "srlm_fast.judge"]
    load_model("tiny").save(tmp_path / "path" / "to" / "model")
    row = {"prompt": "Name a fruit.", "responses": ["apple", "I do not know."], "scores": [5, 1]}
    (tmp_path / "ranked.jsonl").write_text(json.dumps(row) + "\n")
    assert judge_command.main([*words[3:], "--judge-max-tokens", "8"]) == run.DONE


OTHERS = {
    "srlm_fast.data": data_command.main,
    "srlm_fast.report": report_command.main,
    "srlm_fast.compare": compare.main,
    "srlm_fast.export": export.main,
}


@pytest.mark.parametrize("line", [line for line in commands() if any(m in line for m in OTHERS)])
def test_the_other_commands_miss_their_files_only(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    launcher, _, module, *argv = shlex.split(line)
    assert launcher == ".venv/bin/python"
    assert OTHERS[module](argv) == run.UNUSABLE
    said = capsys.readouterr().err
    given = [word for word in argv if word.startswith(("runs/", "oasst"))]
    assert given and any(name in said for name in given), said


def test_the_plans_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plans = [shlex.split(line)[3:] for line in commands() if "--plan" in line]
    assert len(plans) == 2
    for argv in plans:
        assert run.main(argv) == run.DONE
        assert "memory on each device" in capsys.readouterr().out


def test_the_run_line_runs_small_and_shows_its_table_and_report(tmp_path: Path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "srlm_fast.run",
            *shlex.split(SMALL),
            "--out",
            str(tmp_path / "run"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^M1 .*\nM2 .*\nreport: (.*)", done.stdout, re.M), done.stdout
    named = {
        row.split("`")[1]
        for row in README.read_text("utf-8").splitlines()
        if ".json" in row and row.startswith("| `")
    }
    for name in named - {"m1/ m2/ m3/"}:
        if not name.startswith("--"):
            assert (tmp_path / "run" / name).is_file(), name


def test_the_users_line_runs_on_a_foreign_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tiny model saved as a folder of its own is as foreign to the command as any other."""
    monkeypatch.chdir(tmp_path)
    load_model("tiny").save(tmp_path / "path" / "to" / "model")
    rows = [json.loads(fenced("json")[0])] + [{"prompt": f"List {n} fruits."} for n in range(2, 9)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = next(line for line in commands() if "--prompts" in line)
    assert run.main([*shlex.split(line)[3:], "--iterations", "0", "--max-tokens", "8"]) == run.DONE
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]):
    exec(compile(fenced("python")[0], str(README), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_the_score_example_reads_scores():
    model = load_model("tiny")
    rows = model.tokenizer(["Good. Score: 4", "Bad. Score: 10"])["input_ids"]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    names: dict[str, Any] = {"model": model, "token_ids": ids, "lengths": lengths}
    exec(compile(fenced("python")[1], str(README), "exec"), names)
    assert names["scores"].nan_to_num(-1).tolist() == [4, -1]


def test_the_dpo_step_learns():
    """On a backbone of one embedding: the margin of its own pairs rises."""
    names: dict[str, Any] = {}
    exec(compile(fenced("python")[2], str(README), "exec"), names)
    torch.manual_seed(0)
    backbone, head = torch.nn.Embedding(50, 8), torch.nn.Parameter(torch.randn(50, 8))
    optimizer = torch.optim.SGD([*backbone.parameters(), head], lr=1.0)
    input_ids = torch.randint(50, (6, 12))
    labels = input_ids.clone()
    labels[:, :5] = -100
    batch = {"input_ids": input_ids, "labels": labels}
    batch |= {"ref_chosen": torch.zeros(3), "ref_rejected": torch.zeros(3)}
    margins = [names["dpo_step"](backbone, head, optimizer, batch)[1] for _ in range(3)]
    assert bool((margins[2] > margins[0]).all())


def test_the_options_table_is_the_packages():
    text = README.read_text("utf-8")
    found = text.split(MARKS[0])[1].split(MARKS[1])[0]
    assert found == options_table(), "run: python -m tests.test_readme"


def test_links_lead_somewhere():
    for page in [README, *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page.name, target)


def write_options_table() -> None:
    head, rest = README.read_text("utf-8").split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    README.write_text(head + MARKS[0] + options_table() + MARKS[1] + tail, encoding="utf-8")


if __name__ == "__main__":
    write_options_table()
