"""Models by what a user calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

from srlm_fast import run_folder
from srlm_fast.records import InputError
from srlm_fast.run_models import find_model, models_of, resolve_model


@pytest.fixture
def made(tmp_path: Path) -> Path:
    out = tmp_path / "runs" / "x"
    for number in (1, 2, 10):
        (out / f"m{number}" / "model").mkdir(parents=True)
    (out / "m11").mkdir()
    run_folder.write_config(out, {"model": "tiny", "seed": 4}, {})
    return out


def test_a_model_of_a_run(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(made.parent.parent)
    found = resolve_model("runs/x/m2")
    assert found == resolve_model("runs/x/m2/model/") == resolve_model(str(made / "m2"))
    assert found.folder_or_name == str(made / "m2" / "model")
    assert (found.name, found.number, found.run, found.rows) == ("M2", 2, made, made / "m2")
    assert found.run_config == {"model": "tiny", "seed": 4}
    assert [path.name for path in models_of(made)] == ["m1", "m2", "m10"]


def test_from_inside_a_run(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(made)
    assert resolve_model("m1") == resolve_model(str(made / "m1"))
    monkeypatch.chdir(made / "m1" / "model")
    assert resolve_model(".").name == "M1"


@pytest.mark.parametrize("name", ["tiny", "llama-3-8b", "owner/name", "model", "m1", "no/m3"])
def test_any_other_name_is_left(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = resolve_model(name)
    assert (found.folder_or_name, found.name, found.run_config) == (name, name, None)
    assert found.rows is None


def test_a_folder_of_no_run(tmp_path: Path):
    folder = tmp_path / "m1" / "model"
    folder.mkdir(parents=True)
    assert resolve_model(str(folder)).run_config is None
    (folder / "config.json").write_text("{}")
    assert resolve_model(str(folder.parent)).folder_or_name == str(folder)
    (folder.parent / "config.json").write_text("{}")
    assert resolve_model(str(folder.parent)).folder_or_name == str(folder.parent)


def test_a_whole_run_stands_for_its_last_model(made: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_model(str(made)) == resolve_model(str(made / "m10"))
    assert find_model(str(made / "m2")).number == 2
    monkeypatch.chdir(made.parent)
    made.rename("tiny")  # the package's own is meant all the same
    assert find_model("tiny").run is None and find_model("tiny").is_tiny
    assert resolve_model("tiny/m1").is_tiny and not resolve_model("owner/name").is_tiny


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/config.json", "config.json: is a file; wanted a model folder"),
        ("", "found a whole run, wanted one of its models: {0}/m1, {0}/m2, {0}/m10"),
        ("/m3", "m3: found no such model, wanted one that the run has: {0}/m1, {0}/m2"),
        ("/m11", "m11: found no model in it yet, wanted one that the run has: {0}/m1"),
    ],
)
def test_mistakes(made: Path, name: str, said: str):
    with pytest.raises(InputError) as caught:
        resolve_model(f"{made}{name}")
    assert said.format(made) in str(caught.value)
