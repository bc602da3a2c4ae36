"""`--reward pairwise` on the tiny world, whose model has never compared: the choices hold little
of its probability, so that the gate is opened here where pairs are wanted.
"""

from __future__ import annotations

import math
import shutil

import pytest
import torch

from srlm_fast.eval import mean_interval
from srlm_fast.judge import DEFAULT_PAIR_PROMPT, pairwise
from srlm_fast.kernels import dpo_loss
from srlm_fast.loop import StoppedError, run
from srlm_fast.loop.comparing import CompareStage
from srlm_fast.loop.token_rows import token_pair
from srlm_fast.model import ModelError, PackedContext, chat, load_model
from srlm_fast.records import Candidate, InputError, Prompt, read_jsonl
from srlm_fast.sampler import Sampler, SamplingParams
from tests.loop.worlds import Silent, share_first_model, small_config, small_run

PROMPT = Prompt("p", "Copy the third word: rice, brush, gray.", "file")
ANSWERS = ["gray", "new. I like this one.", "gray", "Gray <|end|> ====="]
SAMPLING = SamplingParams(n=4)


@pytest.fixture(scope="module")
def first(two_rounds):
    return two_rounds


@pytest.fixture(scope="module")
def sampler():
    return Sampler(load_model("tiny"))


@pytest.fixture
def open_gate(monkeypatch):
    monkeypatch.setattr(pairwise, "MIN_MASS", 0.0)


def compared(sampler, folder, run=True):
    stage = CompareStage(sampler, SAMPLING, folder / "candidates.jsonl", folder / "rows.jsonl")
    given = [Candidate("p", k, text, (), 0.0, "stop") for k, text in enumerate(ANSWERS)]
    stage.candidates = {"p": given}
    if run:
        stage.run([PROMPT])
    return read_jsonl(folder / "rows.jsonl"), stage


def dense_choice(model, first, second):
    """P("1") of the two and their mass, by a plain forward."""
    special = chat.reserved_strings(model.tokenizer)
    text = DEFAULT_PAIR_PROMPT.render(PROMPT.text, first, second, special)
    lead = model.tokenizer(DEFAULT_PAIR_PROMPT.prefix, add_special_tokens=False)["input_ids"]
    ids = chat.encode(model.tokenizer, text) + lead
    context = PackedContext([len(ids)], model.config.windows)
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), context)
        probs = model.logits(hidden[-1:])[0].double().softmax(-1)
    known = model.tokenizer.get_vocab()
    one, two = (sum(float(probs[known[t]]) for t in (f"{k}", f"Ġ{k}")) for k in (1, 2))
    return one / (one + two), one + two


def test_rows_are_both_orders_by_a_plain_forward(sampler, tmp_path, open_gate):
    rows, stage = compared(sampler, tmp_path)
    assert len(rows) == 5  # of 6 pairs one is of equal texts
    assert {(row["first"], row["second"]) for row in rows} == {
        (0, 1),
        (2, 1),
        (0, 3),
        (2, 3),
        (1, 3),
    }
    assert stage.tokens.judgements == 6  # three pairs of texts, two orders each
    for row in rows:
        one, other = ANSWERS[row["first"]], ANSWERS[row["second"]]
        forward, mass = dense_choice(sampler.model, one, other)
        turned, other_mass = dense_choice(sampler.model, other, one)
        assert row["forward"] == pytest.approx(forward, abs=1e-4)
        assert row["backward"] == pytest.approx(1 - turned, abs=1e-4)
        assert row["mass"] == pytest.approx(min(mass, other_mass), rel=1e-3)
        assert row["score"] == pytest.approx((row["forward"] + row["backward"]) / 2)


def test_little_mass_is_unread(sampler, tmp_path):
    rows, _ = compared(sampler, tmp_path)
    assert {(row["score"], row["status"]) for row in rows} == {(None, "MISSING")}


@pytest.mark.parametrize("kept", range(6))
def test_a_stage_goes_on_row_by_row(sampler, tmp_path, kept):
    """Rows that are there stay; a torn one, and those that are not, are made again."""
    whole, _ = compared(sampler, tmp_path)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    torn = lines[kept][:-9] if kept < 5 else b""
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
    again, stage = compared(sampler, tmp_path)
    key = lambda row: (row["first"], row["second"])  # noqa: E731
    assert again[:kept] == whole[:kept]
    assert sorted(again, key=key) == sorted(whole, key=key)
    # Rows of equal texts share two requests, made again if one of the rows is missing.
    assert stage.tokens.judgements == (6, 6, 4, 4, 2, 0)[kept]


def test_pairs_too_long_for_the_context_are_left_out(sampler, tmp_path):
    _, stage = compared(sampler, tmp_path, run=False)
    stage.longest = 40
    stage.run([PROMPT])
    assert read_jsonl(tmp_path / "rows.jsonl") == [] and set(stage.too_long) == {"p"}


def check_own_score(out, summary):
    """M2's preference for its own held-out answers over M1's; those that are the same are even."""
    texts = [
        {row["prompt_id"]: row["text"] for row in read_jsonl(out / name / "evaluation.jsonl")[::-1]}
        for name in ("m1", "m2")
    ]
    rows = {row["prompt_id"]: row["score"] for row in read_jsonl(out / "m2" / "own_compared.jsonl")}
    assert rows.keys() == {key for key in texts[1] if texts[0][key] != texts[1][key]} != set()
    mean, low, high = mean_interval([rows.get(key, 0.5) for key in texts[1]])
    found = summary["models"][1]["own_score"]
    assert (found["score"], found["n"]) == (pytest.approx(mean), len(texts[1]))
    assert found["interval"] == [pytest.approx(low), pytest.approx(high)]
    assert found["change"] == pytest.approx(mean - 0.5) and found["against"] == "M1"
    assert found["kind"] == "preference"


def test_the_round(first, tmp_path, open_gate):
    out = tmp_path / "run"
    share_first_model(first, out)
    summary = small_run(out, reward="pairwise", iterations=1)
    check_own_score(out, summary)
    rows, pairs = (read_jsonl(out / "m2" / f"{name}.jsonl") for name in ("comparisons", "pairs"))
    (made,) = summary["rounds"]
    assert not (out / "m2" / "judgements.jsonl").exists()
    assert made["judgements"] == len(rows) > 0 == made["unparsed"]
    assert made["pairs"] == len(pairs) > 0
    assert made["pairs"] + sum(made["dropped"].values()) == made["prompts"]
    scores = {(row["prompt_id"], row["first"], row["second"]): row["score"] for row in rows}
    for row in pairs:
        key = row["chosen_index"], row["rejected_index"]
        found = scores.get((row["prompt_id"], *key))
        turned = scores.get((row["prompt_id"], *key[::-1]))
        assert row["label"] == pytest.approx(1 - turned if found is None else found)
        assert 0 <= row["score_rejected"] < row["score_chosen"] <= 1
    first_step = next(
        row for row in read_jsonl(out / "metrics.jsonl")
        if row["stage"] == "m2/train" and row.get("step") == 0
    )  # fmt: skip
    assert first_step["loss"] == pytest.approx(math.log(2), abs=1e-4)  # whatever the label


def test_labels_reach_the_loss(sampler):
    rows = {"p": [Candidate("p", k, text, (5, 6 + k), 0.0, "stop") for k, text in enumerate("ab")]}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"prompt_id": "p", "chosen": turns, "chosen_index": 0, "rejected_index": 1}
    assert token_pair(sampler.model, row, rows).label == 1.0
    assert token_pair(sampler.model, row | {"label": 0.75}, rows).label == 0.75


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_the_losses_that_are_let_through_mix_by_the_label(loss):
    logps = (torch.tensor([-3.0]), torch.tensor([-5.0]))
    refs = (torch.tensor([-4.0]), torch.tensor([-4.0]))
    right, wrong, soft = (
        dpo_loss(logps, refs, loss, labels=torch.tensor([label])).loss.item()
        for label in (1.0, 0.0, 0.75)
    )
    assert soft == pytest.approx(0.75 * right + 0.25 * wrong) and right < wrong


def test_a_round_without_a_read_comparison_stops_and_says_so(first, tmp_path):
    share_first_model(first, tmp_path / "run")
    with pytest.raises(StoppedError, match=r"no pair to learn from.*judgements: missing \d+"):
        run(small_config(tmp_path / "run", reward="pairwise", iterations=1), Silent())
    assert read_jsonl(tmp_path / "run" / "m2" / "comparisons.jsonl")


def test_lost_rows_are_named(first, tmp_path):
    out = tmp_path / "run"
    share_first_model(first, out)
    with pytest.raises(StoppedError):
        run(small_config(out, reward="pairwise", iterations=1), Silent())
    path = out / "m2" / "comparisons.jsonl"
    for damage in (b"", b'{"a": 1}\n' * len(read_jsonl(path))):
        shutil.copytree(out, tmp_path / "copy", dirs_exist_ok=True)
        copied = tmp_path / "copy" / "m2" / "comparisons.jsonl"
        copied.write_bytes(damage)
        with pytest.raises(InputError, match=r"comparisons\.jsonl"):
            run(small_config(tmp_path / "copy", reward="pairwise", iterations=1), Silent())
        assert copied.read_bytes() == damage


def test_a_tokenizer_without_choices_is_refused(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr("srlm_fast.loop.comparing.CHOICES", (1001, 2002))
    with pytest.raises(ModelError, match="--reward pairwise: the tokenizer has no token of its"):
        compared(sampler, tmp_path, run=False)
