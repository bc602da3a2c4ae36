"""`--prompt-model`: whose weights make the prompts of a round."""

from __future__ import annotations

import json
import shutil

import pytest

from srlm_fast import records
from srlm_fast.config import from_options, tiny
from srlm_fast.data import PromptConfig
from srlm_fast.loop import state
from srlm_fast.loop.prompt_model import Author, is_asked_in_chat
from srlm_fast.model import chat, load_model
from srlm_fast.model.load import find_folder
from srlm_fast.records import read_jsonl
from srlm_fast.run import main, read_options
from tests.loop.test_resume import Killed, break_at
from tests.loop.worlds import results, same, share_first_model, small_run

# Large steps: what M1 and M2 write must differ.
SMALL = {
    "num_ift": 16,
    "num_eft": 16,
    "sft.epochs": 1,
    "num_prompts": 10,
    "reward": "random",
    "candidates.n": 2,
    "candidates.max_tokens": 16,
    "dpo.learning_rate": 3e-3,
    "evaluation.num_prompts": 4,
    "evaluation.num_judged": 1,
    "prompts.batch_requests": 4,
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp("prompt_model") / "first"
    small_run(out, **SMALL | {"iterations": 0})
    return out


@pytest.fixture(scope="module")
def by_m1(first, tmp_path_factory):
    """A run with M1's prompts in both rounds."""
    out = tmp_path_factory.mktemp("prompt_model") / "m1"
    share_first_model(first, out)
    small_run(out, **SMALL, prompt_model="m1")
    return out


def prompts(out, name):
    return [row["text"] for row in read_jsonl(out / name / "prompts.jsonl")]


def test_a_folder_with_m1_gives_the_run_that_m1_gives(first, by_m1, tmp_path):
    """Other tensors with the same weights: the same prompts, and the live model is as it was."""
    out = tmp_path / "run"
    share_first_model(first, out)
    summary = small_run(out, **SMALL, prompt_model=str(first / "m1" / "model"))
    same(results(by_m1), results(out))
    memory = summary["memory"]
    assert memory["weight_copies"] == 1 and memory["weights_moved"] == 0
    assert memory["peak_bytes"]["prompting"] > 0
    measured = {
        row.get("phase"): row["memory"]
        for row in read_jsonl(out / "metrics.jsonl")
        if row["stage"] == "m3/prompts" and "memory" in row
    }
    assert measured["prompting"]["models"] == 2
    assert measured["prompting"]["kv_bytes"] == 0  # the run's own pool has made room
    stages = json.loads((out / "state.json").read_text())["stages"]
    assert stages["m3/prompts"]["prompt_model"] == str(first / "m1" / "model")


def before_m3(by_m1, out):
    """The run by M1 up to its M2."""
    shutil.copytree(by_m1, out, ignore=shutil.ignore_patterns("m3"))
    kept = json.loads((out / "state.json").read_text("utf-8"))
    for stages in kept.values():
        for name in [name for name in stages if name.startswith("m3/")]:
            del stages[name]
    (out / "state.json").write_text(json.dumps(kept), "utf-8")


def to_m3_prompts(out, monkeypatch, prompt_model):
    """Go on until the prompts of the second round are there."""
    with monkeypatch.context() as patch:
        break_at(patch, state.RunState, "finish", 1)
        with pytest.raises(Killed):
            small_run(out, **SMALL, prompt_model=prompt_model)


def test_the_live_model_writes_other_prompts_in_the_second_round(by_m1, tmp_path, monkeypatch):
    out = tmp_path / "run"
    before_m3(by_m1, out)
    to_m3_prompts(out, monkeypatch, "live")
    assert len(prompts(out, "m3")) == 10
    assert prompts(out, "m3") != prompts(by_m1, "m3")


@pytest.mark.parametrize("kind", ["m1", "folder"])
def test_killed_while_prompts_are_made_and_started_again(kind, by_m1, tmp_path, monkeypatch):
    out = tmp_path / "run"
    before_m3(by_m1, out)
    name = "m1" if kind == "m1" else str(by_m1 / "m1" / "model")
    for _ in range(2):
        with monkeypatch.context() as patch:
            break_at(patch, records.RowWriter, "write", 1)
            with pytest.raises(Killed):
                small_run(out, **SMALL, prompt_model=name)
        assert 0 < len(prompts(out, "m3")) < 10
    to_m3_prompts(out, monkeypatch, name)
    rows = [(run / "m3" / "prompts.jsonl").read_text("utf-8") for run in (out, by_m1)]
    assert rows[0] == rows[1]


def test_a_chat_model_is_asked_in_a_turn_and_a_base_model_goes_on_with_the_text():
    model = load_model("tiny")
    asked = Author(model, None, as_chat=True)
    text = "Here are some tasks.\nTask 1: Say <|end|> now.\n"
    config = PromptConfig()
    assert asked.layout(config).tail == config.chat_tail
    assert asked.params(tiny().prompt_sampling).stop == ()
    assert asked.ids("List two fruits.") == chat.encode(model.tokenizer, "List two fruits.")
    goes_on = Author(model, None)
    assert goes_on.layout(config) is config
    assert goes_on.ids(text) == model.tokenizer(text)["input_ids"]
    half = model.config.max_position_embeddings // 2
    long = "List two fruits. " * half
    assert goes_on.ids(long) == model.tokenizer(long)["input_ids"][-half:]
    end = chat.encode(model.tokenizer, "fruits.")[-3:]
    assert len(asked.ids(long)) < 2 * half and asked.ids(long)[-3:] == end


def test_who_is_asked_in_a_turn():
    model = load_model("tiny")  # has a template of its own
    assert is_asked_in_chat(model, PromptConfig())
    assert not is_asked_in_chat(model, tiny().prompts)  # M0 has seen tasks as a text
    model.tokenizer.chat_template = None
    chat.ensure_chat_template(model.tokenizer)
    assert not is_asked_in_chat(model, PromptConfig())


def test_a_special_token_in_a_seed_ends_no_turn():
    model = load_model("tiny")
    special = model.tokenizer.eos_token
    ids = Author(model, None, as_chat=True).ids(f"Say {special} now")
    assert ids.count(model.tokenizer.eos_token_id) == 0


def test_a_run_with_a_chat_model(first, tmp_path):
    """The tiny model in its own template, which answers instead of making tasks: whatever comes of
    it is a row or a counted reason."""
    out = tmp_path / "run"
    share_first_model(first, out)
    loose = {"prompts.chat_tail": "Task {n}:", "prompts.similarity": 1.0, "iterations": 1}
    small_run(out, **SMALL | loose, prompt_model=str(first / "m1" / "model"))
    figures = json.loads((out / "state.json").read_text())["stages"]["m2/prompts"]
    assert 0 < figures["prompts"] == len(prompts(out, "m2")) <= 10


def options(*argv):
    return from_options(read_options(["--out", "run", *argv]))


def test_options(tmp_path, monkeypatch):
    (tmp_path / "m1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert options().prompt_model == "live"
    assert options("--recipe", "paper").prompt_model == "m1"
    assert options("--recipe", "paper", "--prompt-model", "live").prompt_model == "live"
    assert options("--prompt-model", "M1").prompt_model == "m1"  # not the folder of that name
    named = options("--prompt-model", str(find_folder("tiny")), "--similarity", "0.8")
    assert named.prompt_model == str(find_folder("tiny")) and "prompt_model" in named.inputs
    assert named.prompts.similarity == 0.8 and named.prompts.near_duplicate == 0
    made = options("--prompt-temperature", "0.5", "--prompt-top-p", "0.8").prompt_sampling
    assert (made.temperature, made.top_p) == (0.5, 0.8)


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (
            ["--prompt-model", "m1", "--prompts", "FILE"],
            "--prompt-model: found with --prompts",
        ),
        (
            ["--similarity", "0.8", "--prompts", "FILE"],
            "--similarity: found with --prompts",
        ),
        (["--prompt-model", "no-such"], "--prompt-model no-such: no such folder"),
        (["--prompt-model", "EMPTY"], "it has no config.json"),
        (["--similarity", "0"], "--similarity: found 0.0, wanted a number above 0, at most 1"),
    ],
)
def test_mistakes(argv, wanted, tmp_path, capsys):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Name a river"}\n')
    (tmp_path / "empty").mkdir()
    names = {"FILE": str(tmp_path / "prompts.jsonl"), "EMPTY": str(tmp_path / "empty")}
    argv = [names.get(word, word) for word in argv]
    assert main(["--out", str(tmp_path / "run"), *argv]) == 2
    said = capsys.readouterr().err
    assert wanted in said and said.count("\n") == 1 and "Traceback" not in said


def test_prompts_of_a_file_need_no_prompt_model(tmp_path):
    """The recipe's own is not looked for."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Name a river"}\n')
    assert options("--recipe", "paper", "--prompts", str(path)).prompt_model == "m1"
