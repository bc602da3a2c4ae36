"""Rows out: by hand, and through what other trainers do with them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer
from trl import data_utils

from srlm_fast.export.pairs import FORMATS
from srlm_fast.records import read_jsonl

ASKED = {"role": "user", "content": "What is rain?"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("Water.", "No."))
ROW = {
    "prompt": "What is rain?",
    "prompt_id": "p1",
    "chosen": [ASKED, GOOD],
    "rejected": [ASKED, BAD],
    "messages": [ASKED, GOOD],
    "score_chosen": 4.0,
    "score_rejected": 1.5,
    "all_responses": ["Water.", "No."],
    "scores": [[4.0, None], [1.0, 2.0]],
    "round": "M2",
}
ORIGIN = {"prompt_id": "p1", "score_chosen": 4.0, "score_rejected": 1.5, "round": "M2"}


def test_every_form_by_hand():
    said = {"from": "human", "value": "What is rain?"}
    good, bad = ({"from": "gpt", "value": text} for text in ("Water.", "No."))
    wanted = {
        "run": ROW,
        "ultrafeedback": {name: ROW[name] for name in list(ROW)[:7]},
        "trl": {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]} | ORIGIN,
        "axolotl": {"messages": [ASKED], "chosen": GOOD, "rejected": BAD} | ORIGIN,
        "conversations": {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]} | ORIGIN,
        "sharegpt": {"conversations": [said], "chosen": good, "rejected": bad} | ORIGIN,
    }
    wanted["openrlhf"] = wanted["conversations"]
    assert {name: form(ROW) for name, form in FORMATS.items()} == wanted


def test_a_conversation_of_several_turns_keeps_them():
    before = [{"role": "system", "content": "Be short."}, ASKED, GOOD]
    row = ROW | {
        side: [*before, ASKED, last] for side, last in (("chosen", GOOD), ("rejected", BAD))
    }
    assert FORMATS["trl"](row)["prompt"] == [*before, ASKED]
    assert FORMATS["sharegpt"](row)["conversations"][0] == {"from": "system", "value": "Be short."}


@pytest.fixture(scope="module")
def tokenizer(made) -> Any:
    return AutoTokenizer.from_pretrained(made / "m2" / "model")


@pytest.fixture(scope="module")
def pair(made) -> dict[str, Any]:
    return read_jsonl(made / "m2" / "pairs.jsonl")[0]


def exported(made: Path, tmp_path: Path, form: str | None, export) -> datasets.Dataset:
    """form None: the default."""
    out = tmp_path / f"{form}.jsonl"
    export("pairs", made, "--out", out, *(("--format", form) if form else ()))
    return load(out, tmp_path)


def load(path: Path, tmp_path: Path, kind: str = "json") -> datasets.Dataset:
    cache = str(tmp_path / "cache")
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)


def wanted(tokenizer: Any, pair: dict[str, Any]) -> dict[str, str]:
    """What a trainer should make of a pair: the prompt's turn, and each answer as it is closed."""
    asked = [{"role": "user", "content": pair["prompt"]}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    answers = {
        side: tokenizer.apply_chat_template(pair[side], tokenize=False)[len(prompt) :]
        for side in ("chosen", "rejected")
    }
    return {"prompt": prompt} | answers


def test_trl_reads_the_rows_of_a_run(made, tokenizer, pair, tmp_path):
    """By the function that TRL has for this layout; its example says the same columns."""
    rows = load(made / "m2" / "pairs.jsonl", tmp_path)
    found = data_utils.maybe_extract_prompt(rows[0])
    assert data_utils.is_conversational(found)
    assert data_utils.apply_chat_template(found, tokenizer) == wanted(tokenizer, pair)


def prepared(rows: datasets.Dataset, tokenizer: Any, tmp_path: Path) -> datasets.Dataset:
    """By the own preparation of TRL's DPO trainer, to token ids."""
    from trl import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer._tokenizer = tokenizer
    settings = DPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to=[])
    return trainer._prepare_dataset(rows, tokenizer, settings, "train")


@pytest.mark.parametrize("form", [None, "trl"])
def test_trl_trains_on(form, made, tokenizer, pair, tmp_path, export):
    rows = exported(made, tmp_path, form, export)
    found = prepared(rows, tokenizer, tmp_path)
    text = wanted(tokenizer, pair)
    assert tokenizer.decode(found[0]["prompt_ids"]) == text["prompt"]
    assert tokenizer.decode(found[0]["chosen_ids"]) == text["chosen"]
    assert tokenizer.decode(found[0]["rejected_ids"]) == text["rejected"]
    assert len(found) == len(rows) == len(read_jsonl(made / "m2" / "pairs.jsonl"))


@pytest.mark.parametrize("form", ["ultrafeedback", "run"])
def test_trl_refuses_a_text_prompt_beside_whole_conversations(
    form, made, tokenizer, tmp_path, export
):
    """Where this fails TRL takes UltraFeedback's own layout, and so what our documents say of it
    has changed. It asks one column, by the order of a set, whether rows are conversations: the
    error is another with another PYTHONHASHSEED.
    """
    rows = exported(made, tmp_path, form, export)
    with pytest.raises((TypeError, AttributeError), match=r"concatenate str|'endswith'"):
        prepared(rows, tokenizer, tmp_path)
    found = prepared(rows.remove_columns("prompt"), tokenizer, tmp_path)
    assert len(found) == len(rows)


def axolotl_default(row: dict[str, Any], messages: str, tokenizer: Any) -> dict[str, str]:
    """Axolotl's `chat_template.default` looks at these keys: the turns before the answer (a text is
    one of the user's), and of each answer a message, or the last of several.
    """
    turns = row[messages]
    turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    found = {"prompt": prompt}
    for side in ("chosen", "rejected"):
        answer = row[side] if isinstance(row[side], dict) else row[side][-1]
        assert answer["role"] == "assistant"
        found[side] = answer["content"]
    return found


def test_axolotl_finds_its_keys(made, tokenizer, pair, tmp_path, export):
    want = {"prompt": wanted(tokenizer, pair)["prompt"]}
    want |= {side: pair[side][-1]["content"] for side in ("chosen", "rejected")}
    row = exported(made, tmp_path, "axolotl", export)[0]
    assert axolotl_default(row, "messages", tokenizer) == want
    unchanged = load(made / "m2" / "pairs.jsonl", tmp_path)[0]
    assert axolotl_default(unchanged, "prompt", tokenizer) == want  # field_messages: prompt
    # chat_template.argilla_chat: the turns before the last message of chosen, then the last ones.
    for row in (unchanged, exported(made, tmp_path, None, export)[0]):
        turns = {"turns": row["chosen"][:-1]} | {s: row[s] for s in ("chosen", "rejected")}
        assert axolotl_default(turns, "turns", tokenizer) == want


def test_openrlhf_finds_its_keys(made, tokenizer, pair, tmp_path, export):
    """`--chosen_key chosen --rejected_key rejected --apply_chat_template` without a prompt key: the
    prompt is chosen without its last message, and a prefix of both texts.
    """
    for rows in (
        load(made / "m2" / "pairs.jsonl", tmp_path),
        exported(made, tmp_path, None, export),
    ):
        row = rows[0]
        prompt = tokenizer.apply_chat_template(
            row["chosen"][:-1], tokenize=False, add_generation_prompt=True
        )
        texts = {
            s: tokenizer.apply_chat_template(row[s], tokenize=False) for s in ("chosen", "rejected")
        }
        assert all(text.startswith(prompt) for text in texts.values())
        found = {"prompt": prompt} | {s: text[len(prompt) :] for s, text in texts.items()}
        assert found == wanted(tokenizer, pair)


def test_datasets_infers_the_columns_where_scores_are_missing(tmp_path):
    path = tmp_path / "pairs.jsonl"
    first = ROW | {"scores": [[None, None], [None]]}
    path.write_text("".join(json.dumps(row) + "\n" for row in (first, ROW)))
    rows = load(path, tmp_path)
    assert rows[0]["scores"] == [[None, None], [None]] and rows[1]["scores"] == ROW["scores"]


def test_parquet_and_lists_hold_the_same(made, tmp_path, export):
    want = read_jsonl(made / "m2" / "pairs.jsonl")
    export("pairs", made, "--out", tmp_path / "a.parquet", "--format", "run", "--round", "M2")
    assert load(tmp_path / "a.parquet", tmp_path, "parquet").to_list() == want
    export("pairs", made, "--out", tmp_path / "a.json", "--format", "run")
    assert json.loads((tmp_path / "a.json").read_text()) == want


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl"])
def test_half_a_surrogate_pair_is_written(suffix, made, tmp_path, export):
    run = tmp_path / "run"
    (run / "m2").mkdir(parents=True)
    (run / "config.json").write_text((made / "config.json").read_text())
    (run / "m2" / "pairs.jsonl").write_text(json.dumps(ROW | {"prompt": "a\udc80"}) + "\n")
    export("pairs", run, "--out", tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").stat().st_size > 0


def test_what_was_taught(made, tmp_path, export, complaint):
    export("sft", made, "--out", tmp_path / "a.jsonl", "--kind", "ift")
    taught = [row for row in read_jsonl(made / "m1" / "sft.jsonl") if row["kind"] == "ift"]
    want = [
        [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["response"]}]
        for r in taught
    ]
    assert [row["messages"] for row in read_jsonl(tmp_path / "a.jsonl")] == want
    export("sft", made, "--out", tmp_path / "b.jsonl", "--format", "alpaca")
    rows = read_jsonl(tmp_path / "b.jsonl")
    assert {row["kind"] for row in rows} == {"ift", "eft"} and rows[0]["input"] == ""
    export("sft", made, "--out", tmp_path / "c.jsonl", "--format", "sharegpt")
    said = read_jsonl(tmp_path / "c.jsonl")[0]["conversations"]
    assert [message["from"] for message in said] == ["human", "gpt"]
    said = complaint("sft", made, "--out", tmp_path / "d.jsonl", "--kind", "best")
    assert "--kind: found best, of which the run has no rows" in said


@pytest.mark.parametrize("what", ["pairs", "sft", "model"])
def test_the_same_command_again_is_done(what, made, tmp_path, export, complaint, capsys):
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    shutil.copytree(made, run)
    export(what, run, "--out", out)
    before = contents(out)
    capsys.readouterr()
    export(what, run, "--out", out)
    assert capsys.readouterr().out == f"{out}: is there already, made by the same command\n"
    if what != "model":
        export(what, run, "--out", out, "--round", "all")  # the default
    other = {"pairs": "--round=m2", "sft": "--kind=ift", "model": "--best"}[what]
    there = {"pairs": "--round all, found m2", "sft": "--kind all", "model": "--best no"}[what]
    said = complaint(what, run, "--out", out, *other.split("="))
    assert f"is there already, made with {there}" in said and "None" not in said
    last = max(out.iterdir() if out.is_dir() else [out])
    last.write_bytes(before[last.name] + b"x")
    assert "is there already, changed since it was made" in complaint(what, run, "--out", out)
    last.write_bytes(before[last.name])
    read = {"pairs": "m2/pairs.jsonl", "sft": "m1/sft.jsonl", "model": "m2/model/config.json"}[what]
    with (run / read).open("a") as file:
        file.write("\n" if what == "model" else (run / read).read_text())
    assert f"made with {'MODEL' if what == 'model' else read} of other" in complaint(
        what, run, "--out", out
    )
    assert contents(out) == before
    (tmp_path / ".out.jsonl.made.json").unlink()
    assert "is there already, wanted a new name" in complaint(what, run, "--out", out)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


def test_mistakes_are_one_line(made, adapted, complaint, tmp_path, monkeypatch):
    out = tmp_path / "a.jsonl"
    assert "--format: found 'tlr', wanted conversations, openrlhf" in complaint(
        "pairs", made, "--out", out, "--format", "tlr"
    )
    assert "found m5, wanted all or one with pairs: m2" in complaint(
        "pairs", made, "--out", out, "--round", "m5"
    )
    assert "--round: found 'two'" in complaint("pairs", made, "--out", out, "--round", "two")
    assert "has no pairs" in complaint("pairs", adapted, "--out", out)
    said = complaint("pairs", made / "m2", "--out", out)
    assert f"a folder that is no run, wanted the folder of a run: {made} --round m2" in said
    assert "found no .jsonl, .json, .parquet" in complaint(
        "pairs", made, "--out", tmp_path / "a.csv"
    )
    assert "its folder is not there" in complaint(
        "pairs", made, "--out", tmp_path / "no" / "a.json"
    )
    out.write_text("mine")
    assert "is there already" in complaint("pairs", made, "--out", out)
    assert out.read_text() == "mine"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = complaint("pairs", made, "--out", tmp_path / "a.parquet")
    assert "pyarrow is not installed" in said


def test_a_row_that_is_no_pair(made, complaint, tmp_path):
    (tmp_path / "m2").mkdir()
    (tmp_path / "config.json").write_text((made / "config.json").read_text())
    (tmp_path / "m2" / "pairs.jsonl").write_text('{"prompt": "x"}\n')
    said = complaint("pairs", tmp_path, "--out", tmp_path / "a.jsonl", "--format", "trl")
    assert "pairs.jsonl: found a row that is no pair of a run ('chosen')" in said
    (tmp_path / "m1").mkdir()
    (tmp_path / "m1" / "sft.jsonl").write_text('{"prompt": "x"}\n')
    said = complaint("sft", tmp_path, "--out", tmp_path / "b.jsonl")
    assert "sft.jsonl: found a row that is no SFT row of a run ('response')" in said


@pytest.mark.parametrize("left", ["", '{"prompt": '])
def test_a_round_that_has_lost_rows_is_not_left_out(left, made, complaint, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out.jsonl"
    shutil.copytree(made, run, ignore=shutil.ignore_patterns("model"))
    wanted = len(read_jsonl(made / "m2" / "pairs.jsonl"))
    (run / "m2" / "pairs.jsonl").write_text(left)
    said = complaint("pairs", run, "--out", out)
    assert f"m2/pairs.jsonl: found 0 rows, wanted the {wanted} of its stage; restore it" in said
    assert not out.exists()
