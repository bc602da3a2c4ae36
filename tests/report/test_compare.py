"""Several runs on one page, and the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from srlm_fast.report.compare import named, render_comparison
from srlm_fast.report.gather import read_run
from srlm_fast.report_command import main
from tests.report.folders import make_folder
from tests.report.test_page import change_summary, text_of


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    folders = [make_folder(tmp_path / name / "run", 4) for name in ("a", "b")]
    config = json.loads((folders[1] / "config.json").read_text())
    config["run"] |= {"seed": 7, "dpo": {"beta": 0.5}}
    (folders[1] / "config.json").write_text(json.dumps(config))
    change_summary(folders[1], lambda s: s["models"].pop())
    return folders


def test_runs_stand_side_by_side(two: list[Path]):
    page = render_comparison(two)
    text = text_of(page)
    assert text.count("2 runs compared") == 2  # title, heading
    differences = text[text.index("In what the runs differ") :]
    assert "--seed" in differences and "dpo.beta" not in differences
    assert re.search(r"--beta.*held to the round's start; .*0\.10\.5", differences)
    chart = page[page.index('aria-label="mean score') :]
    chart = chart[: chart.index("</svg>")]
    assert len(re.findall(r"<title>a/run, M\d: ", chart)) == 3
    assert len(re.findall(r"<title>b/run, M\d: ", chart)) == 2
    assert text.count("1 warning of collapse") == 2


def test_equal_runs_do_not_differ(two: list[Path], tmp_path: Path):
    same = shutil.copytree(two[0], tmp_path / "same")
    assert "All options and versions are the same." in render_comparison([two[0], same])


def test_each_run_shows_its_own_contests_lengths_and_trainings(two: list[Path]):
    won = {"n": 100, "win": 60, "tie": 10, "loss": 30, "win_rate": 0.65, "interval": [0.6, 0.7]}
    change_summary(two[1], lambda s: s["models"][1].update(against_previous=won))
    page = render_comparison(two)
    contest = text_of(page).partition("its own first model")[2].partition("The judges")[0]
    assert re.search(r"b/run\s*M2\s*M1\s*–\s*60.0 %\s*10.0 %\s*30.0 %\s*65.0 %", contest)
    assert page.count("21 answers</title>") == 6 and "a/run M3: mean 13.0" in page
    for title, end in (("M1: loss", 0.4), ("M3: log-ratio of the rejected, nats", -0.87)):
        assert f'aria-label="{title}: a/run ends at {end}; b/run ends at {end}"' in page
    assert "M3: loss" not in page


def test_a_run_without_scores_says_so_and_has_no_other_judge(two: list[Path]):
    change_summary(two[1], lambda s: s.update(models=[], rounds=[]))
    page = render_comparison(two)
    assert "same judge" not in page and "</svg>a/run</li><li>b/run: no figures yet</li>" in page
    change_summary(two[1], lambda s: s.update(models=[scored_by("M1", "llama")]))
    assert "were not given by the same judge" in render_comparison(two)


def scored_by(model: str, judge: str) -> dict[str, object]:
    return {"name": model, "eval": {"score": 3.0, "judged_by": judge}}


def test_names_tell_the_runs_apart(two: list[Path], tmp_path: Path):
    other = make_folder(tmp_path / "other", 1)
    runs = [read_run(folder) for folder in (*two, other)]
    assert [name for name, _ in named(runs)] == ["a/run", "b/run", f"{tmp_path.name}/other"]
    assert [name for name, _ in named(runs[2:3])] == ["other"]


def test_hostile_names_are_escaped(tmp_path: Path):
    folders = [make_folder(tmp_path / name, 1) for name in ("<u>a", "<u>b")]
    assert "<u>" not in render_comparison(folders)


def test_unfinished_runs_compare(two: list[Path]):
    (two[1] / "summary.json").unlink()
    assert "not finished" in text_of(render_comparison(two))


def test_the_command_writes_one_page_of_each_kind(two, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(two[0])]) == 0
    assert main([*map(str, two)]) == 0
    assert main([*map(str, two), "--out", "other.html"]) == 0
    assert main([str(two[0]), "--out", "one.html"]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(two[0] / "report.html"), "report.html", "other.html", "one.html"]
    assert "runs compared" in Path("report.html").read_text()
    assert main([*map(str, two)]) == 0  # its own page is written anew
    assert main([str(two[0]), "--out", "one.html"]) == 0


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["{a}", "none"], "none: found no config.json of a run"),
        ([], "the following arguments are required: RUN"),
        (["{a}", "{b}", "{b}"], "b/run: found the same run twice, wanted different runs"),
        (["{a}", "{a}/../run"], "a/run too, wanted different runs"),
        (["{a}", "--fast"], "unrecognized arguments: --fast"),
        (["{a}", "--out", ""], "--out: found ''"),
        (["{a}", "--out", "{a}"], "found a folder, wanted the name of a file"),
        (["{a}", "--out", "no/where.html"], "found no folder no"),
        (["{a}", "--out", "mine.html"], "mine.html: found a file that is no such page"),
        (["{a}", "{b}", "--out", "{a}/report.html"], "report.html: found a file that is no such"),
    ],
)
def test_mistakes_are_one_line(two, tmp_path, monkeypatch, capsys, arguments, wanted):
    monkeypatch.chdir(tmp_path)
    assert main([str(two[0])]) == 0
    Path("mine.html").write_text("<html>my own</html>")
    given = [each.format(a=two[0], b=two[1]) for each in arguments]
    capsys.readouterr()
    assert main(given) == 2
    said = capsys.readouterr()
    assert wanted in said.err and said.err.count("\n") == 1 and said.err.startswith("srlm_fast: ")
    assert said.out == "" and Path("mine.html").read_text() == "<html>my own</html>"


def test_the_door_and_its_speed_of_start():
    code = "import sys, srlm_fast.report_command; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "srlm_fast.report", "none"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("srlm_fast: none: found no config.json")
