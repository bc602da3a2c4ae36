"""Answers for AlpacaEval and MT-Bench: their rows, the second turn, a killed command."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from srlm_fast import Sampler, SamplingParams, load_model
from srlm_fast.export import answering, mt_bench
from srlm_fast.export.__main__ import main
from srlm_fast.model import chat
from srlm_fast.records import RowWriter, read_jsonl

PROMPTS = [
    {"instruction": "List 3 fruits.", "dataset": "helpful_base", "output": "x", "generator": "y"},
    {"instruction": "Say 3 minus 0.", "dataset": None, "note": {"kept": True}},
    {"instruction": "Count up.", "input": "From 4 to 7."},
    {"instruction": "List 3 animals."},
]
QUESTIONS = [
    {"question_id": 82, "category": "math", "turns": ["Say 3 minus 0.", "List 3 fruits."]},
    {"question_id": 81, "category": "writing", "turns": ["List 3 animals.", "Say 4 plus 1."]},
]


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(PROMPTS))
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    return lines(tmp_path / "question.jsonl", *QUESTIONS)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer_of(folder: Path, ids: list[int], params: SamplingParams) -> str:
    return Sampler(load_model(folder)).generate([ids], params)[0].samples[0].text.strip()


def test_alpaca_eval(made, prompts, tmp_path, export, capsys, complaint):
    out = tmp_path / "out.json"
    command = ("alpaca-eval", made, "--prompts", prompts, "--out", out, "--max-tokens", 12)
    export(*command)
    rows = json.loads(out.read_text())
    assert rows[0].keys() == {"instruction", "output", "generator", "dataset", "datasplit"}
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in PROMPTS]
    assert {row["generator"] for row in rows} == {"tiny-run-m2"}
    assert [r["dataset"] for r in rows] == ["helpful_base", *["alpaca_eval"] * 3]
    assert rows[1]["note"] == {"kept": True} and rows[2]["input"] == "From 4 to 7."
    model = load_model(made / "m2")
    ids = chat.encode(model.tokenizer, "Count up.\n\nFrom 4 to 7.")
    params = SamplingParams(temperature=0.7, max_tokens=12)
    assert rows[2]["output"] == answer_of(made / "m2", ids, params)
    assert "answers" in capsys.readouterr().out
    export(*command)
    assert capsys.readouterr().out == f"{out}: is there already, made by the same command\n"
    assert json.loads(out.read_text()) == rows
    assert "is there already, made with --name not given, found x" in complaint(
        *command, "--name", "x"
    )
    prompts.write_text(json.dumps(PROMPTS[:2]))
    assert "made with --prompts of other content" in complaint(*command)
    left = [".out.json.made.json", "out.json", "prompts.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def killed_after(monkeypatch, rows: int) -> None:
    """The process dies behind the row with this number."""
    original, count = RowWriter.write, [0]

    def write(self, *written):
        original(self, *written)
        count[0] += 1
        if count[0] == rows:
            raise SystemError("killed")

    monkeypatch.setattr(RowWriter, "write", write)


@pytest.mark.parametrize("what", ["alpaca-eval", "mt-bench"])
def test_killed_it_goes_on(
    what, made, prompts, questions, tmp_path, monkeypatch, export, complaint
):
    file = ["--prompts", prompts] if what == "alpaca-eval" else ["--questions", questions]
    command = [str(w) for w in (what, made, *file, "--temperature", 1, "--max-tokens", 12)]
    whole, out = tmp_path / "whole.json", tmp_path / "out.json"
    export(*command, "--out", whole)
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(SystemError):
            main([*command, "--out", str(out)])
    waiting = tmp_path / "out.json.rows.jsonl"
    kept = read_jsonl(waiting)
    assert len(kept) == 1 and not out.exists()
    said = complaint(*command, "--out", out, "--top-p", "0.5")
    assert "holds answers made with --top-p 1.0, found 0.5" in said
    with waiting.open("a") as file_:
        file_.write('{"key": "torn')
    asked = []
    ask = answering.Answering._ask
    monkeypatch.setattr(
        answering.Answering, "_ask", lambda self, a: asked.append(a.dialogue.key) or ask(self, a)
    )
    export(*command, "--out", out)
    assert kept[0]["key"] not in asked and asked
    assert without_time(out) == without_time(whole)
    assert not list(tmp_path.glob("out.json.*"))


def test_interrupted_it_says_that_it_goes_on(made, prompts, tmp_path, monkeypatch, capsys):
    run = answering.Answering.run
    stopped = lambda self, dialogues, display, stop=None: run(  # noqa: E731
        self, dialogues, display, lambda: True
    )
    monkeypatch.setattr(answering.Answering, "run", stopped)
    command = ["alpaca-eval", str(made), "--prompts", str(prompts), "--max-tokens", "12"]
    assert main([*command, "--out", str(tmp_path / "out.json")]) == 130
    assert "the same command goes on from there" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


def without_time(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    rows = json.loads(text) if text.startswith("[") else [json.loads(x) for x in text.splitlines()]
    return [{name: value for name, value in row.items() if name != "tstamp"} for row in rows]


def test_mt_bench(made, questions, tmp_path, export):
    out = tmp_path / "out.jsonl"
    export("mt-bench", made / "m1", "--questions", questions, "--out", out, "--max-tokens", 12)
    rows = read_jsonl(out)
    fields = {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert [row["question_id"] for row in rows] == [81, 82] and rows[0].keys() == fields
    assert len({row["answer_id"] for row in rows}) == 2
    assert rows[0]["model_id"] == "tiny-run-m1" and rows[0]["tstamp"] > 1.7e9
    ((choice,), (other,)) = (row["choices"] for row in rows)
    assert choice["index"] == 0 and len(choice["turns"]) == len(other["turns"]) == 2
    # Mathematics is greedy; the second turn has the first question and answer before it.
    tokenizer = load_model(made / "m1").tokenizer
    greedy = SamplingParams(temperature=0, max_tokens=12)
    first = answer_of(made / "m1", chat.encode(tokenizer, "Say 3 minus 0."), greedy)
    before = [
        {"role": "user", "content": "Say 3 minus 0."},
        {"role": "assistant", "content": first},
    ]
    second = answer_of(made / "m1", chat.encode(tokenizer, "List 3 fruits.", before), greedy)
    assert other["turns"] == [first, second]


def test_temperatures_are_fastchats(questions):
    found = {kind: mt_bench.temperature({"category": kind}, None) for kind in mt_bench.TEMPERATURES}
    assert found["coding"] == found["math"] == found["reasoning"] == found["extraction"] == 0
    assert found["stem"] == found["humanities"] == 0.1
    assert found["writing"] == found["roleplay"] == 0.7
    assert mt_bench.temperature({"category": "other"}, None) == 0.7
    assert mt_bench.temperature({"category": "math"}, 0.3) == 0.3


def test_choices_differ_by_their_seed(made, questions, tmp_path, export):
    out = tmp_path / "out.jsonl"
    hot = ["--temperature", 3, "--max-tokens", 8, "--choices", 2, "--name", "mine"]
    export("mt-bench", made, "--questions", questions, "--out", out, *hot)
    for row in read_jsonl(out):
        assert [choice["index"] for choice in row["choices"]] == [0, 1]
        assert row["choices"][0]["turns"] != row["choices"][1]["turns"]
        assert row["model_id"] == "mine"


def test_the_choices_of_other_seeds_are_others():
    found = set()
    for seed, choices in ((0, 2), (1, 1), (2, 3)):
        arguments = argparse.Namespace(
            choices=choices, seed=seed, temperature=None, top_p=1.0, max_tokens=8
        )
        found |= {each.params.seed for each in mt_bench.dialogues(QUESTIONS, arguments)}
    assert len(found) == 6


def test_what_is_longer_than_the_context_is_left_empty(made, tmp_path, export, capsys):
    file = lines(tmp_path / "p.jsonl", {"instruction": "word " * 3000}, {"instruction": "Say 1."})
    export("alpaca-eval", made, "--prompts", file, "--out", tmp_path / "o.json", "--max-tokens", 4)
    rows = json.loads((tmp_path / "o.json").read_text())
    assert rows[0]["output"] == "" and rows[1]["output"]
    assert "left empty, longer than the model's context: 1 answers" in capsys.readouterr().out


MISTAKES = {
    "no field": ([{"question_id": 1, "category": "x"}], "field 'turns' is missing"),
    "no turn": ([{"question_id": 1, "turns": []}], "line 1: field 'turns' is an empty list"),
    "blank turn": ([{"question_id": 1, "turns": ["a", " "]}], "field 'turns[1]' is blank"),
    "no id": ([{"turns": ["a"]}], "field 'question_id' is missing"),
    "half an id": ([{"question_id": 1.5, "turns": ["a"]}], "is 1.5, wanted a whole number"),
    "twice": ([{"question_id": 1, "turns": ["a"]}] * 2, "line 2: field 'question_id' is 1, which"),
}


@pytest.mark.parametrize("rows, said", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_questions(rows, said, complaint, tmp_path):
    file = lines(tmp_path / "q.jsonl", *rows)
    command = ("mt-bench", "tiny", "--questions", file, "--out", tmp_path / "out.jsonl")
    assert said in complaint(*command)
    assert not list(tmp_path.glob("out*"))


def test_mistakes_in_prompts_and_models(complaint, tmp_path):
    out = tmp_path / "out.json"

    def said(file: Path, model: str = "tiny") -> str:
        return complaint("alpaca-eval", model, "--prompts", file, "--out", out)

    assert "p.json: no such file" in said(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('[{"instruction": "a"}, {"prompt": "b"}]')
    assert "element 2 of a list: field 'instruction' is missing" in said(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('[{"instruction": "a"}, 3]')
    assert "element 2 of a list: the number 3" in said(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('[{"instruction": "a"')
    assert "element 1 of a list: not JSON" in said(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('[{"instruction": "a", "instruction": "b"}]')
    assert "the key 'instruction' stands twice" in said(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("[" * 100_000)
    assert "lists too deep" in said(tmp_path / "p.json")
    (tmp_path / "p.json").write_text('{"instruction": "a"}\n')
    assert "nowhere: no such folder" in said(tmp_path / "p.json", "nowhere")
    assert "--prompts: not given" in complaint("alpaca-eval", "tiny", "--out", out)
    out.write_text("mine")
    assert "is there already" in said(tmp_path / "p.json") and out.read_text() == "mine"
    assert not list(tmp_path.glob("out.json.*"))
