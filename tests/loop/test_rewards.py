"""Rewards that need a stage of their own: a reward model, a constitution, best of n."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from srlm_fast import records
from srlm_fast.judge import DEFAULT_PRINCIPLES, Principle
from srlm_fast.loop import best_of_n, reward_model, run, state
from srlm_fast.loop.revisions import RevisionStage
from srlm_fast.loop.reward_model import conversation, score_answers, split_preferences
from srlm_fast.loop.rewarding import REWARDINGS
from srlm_fast.model import load_model, load_reward_model, with_score_head
from srlm_fast.model.load import find_folder
from srlm_fast.options import REWARDS
from srlm_fast.records import Candidate, InputError, Prompt, read_jsonl
from srlm_fast.report.page import render
from srlm_fast.run import main
from srlm_fast.run_folder import write_config
from srlm_fast.sampler import Generation, Sample, Sampler, SamplingParams
from srlm_fast.tiny.rubric import RUBRIC
from tests.loop.test_resume import Killed, break_at
from tests.loop.worlds import Silent, same, share_first_model, small_config, small_run

SMALL = {"iterations": 1, "candidates.n": 3, "candidates.max_tokens": 24}


@pytest.fixture(scope="module")
def first(two_rounds):
    """A run whose M1 the others start from."""
    return two_rounds


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """Forty pairs, to twenty prompts: the answer that ends in a full stop is the better one."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"List {n % 20} fruits.",
            "chosen": [{"role": "assistant", "content": f"apple, pear {n}."}],
            "rejected": f"apple, pear {n}!",
        }
        for n in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reward model of random weights in the tiny model's clothes."""
    path = tmp_path_factory.mktemp("reward") / "model"
    with_score_head(load_model("tiny"), 5).save(path)
    return path


def test_every_reward_of_the_options_has_its_class():
    assert set(REWARDINGS) == set(REWARDS)


def small(first, out, **changes):
    share_first_model(first, out)
    return small_run(out, **(SMALL | changes))


def rows_of(out, name):
    return read_jsonl(out / "m2" / f"{name}.jsonl")


def contents(out):
    names = ("candidates", "judgements", "revisions", "pairs", "sft")
    found = {name: sorted(map(records.dump_row, rows_of(out, name))) for name in names}
    for path in sorted(out.rglob("model.safetensors")):
        found[str(path.relative_to(out))] = path.read_bytes()
    return found


def check_summary(out, summary, pairs=None):
    """The fields that every reward has, against the rows; and the page renders."""
    (made,) = summary["rounds"]
    judgements = rows_of(out, "judgements")
    assert made["candidates"] == len(rows_of(out, "candidates"))
    assert made["judgements"] == len(judgements)
    assert made["unparsed"] == sum(row["score"] is None for row in judgements)
    assert made["pairs"] == len(rows_of(out, "pairs"))
    assert made["pairs"] + sum(made["dropped"].values()) == made["prompts"] == 20
    assert made["ties"] == made["dropped"]["tie"]
    assert all(value >= 0 for value in made["seconds"].values())
    write_config(out, small_config(out, **SMALL).to_json(), {})
    assert "Round that made M2" in render(out) or not judgements


# --------------------------------------------------------------------------------- a reward model


def test_a_reward_model_scores_the_round_as_transformers_does(first, folder, tmp_path):
    out = tmp_path / "run"
    summary = small(first, out, reward="model", reward_model=str(folder))
    check_summary(out, summary)
    scores = {(r["prompt_id"], r["candidate"]): r["score"] for r in rows_of(out, "own_judged")}
    own = {key: score for (key, k), score in scores.items() if k == 1}
    found = summary["models"][1]["own_score"]
    assert found["n"] == len(own) == 24 and found["against"] == "M1"
    assert found["score"] == pytest.approx(sum(own.values()) / 24)
    change = [score - scores[key, 0] for key, score in own.items()]
    assert found["change"] == pytest.approx(sum(change) / 24) != 0
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = {row["prompt_id"]: row["text"] for row in rows_of(out, "prompts")}
    answers = {(c["prompt_id"], c["index"]): c["text"] for c in rows_of(out, "candidates")}
    judged = rows_of(out, "judgements")
    assert len(judged) == len(answers) == 60
    for row in judged[::7]:
        answer = answers[row["prompt_id"], row["candidate"]]
        asked = Prompt("", prompts[row["prompt_id"]], "file")
        messages = conversation(asked, answer, tokenizer.all_special_tokens)
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        begin = tokenizer.bos_token
        ids = tokenizer(text, add_special_tokens=bool(begin) and not text.startswith(begin))
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids["input_ids"]])).logits.item()
        assert row["score"] == pytest.approx(wanted, abs=1e-4)
    for row in rows_of(out, "pairs"):
        assert row["score_chosen"] == max(score for (score,) in row["scores"])
        assert math.isfinite(row["ref_logps"]["chosen"])


def test_a_reward_model_learns_from_pairs_and_is_used(first, pairs_file, tmp_path):
    out, screen = tmp_path / "run", Silent()
    share_first_model(first, out)
    config = small_config(
        out,
        reward="model",
        reward_pairs_file=str(pairs_file),
        **SMALL
        | {
            "reward_training.epochs": 6,
            "reward_training.learning_rate": 1e-3,
            "reward_training.batch_pairs": 6,
        },
    )
    summary = run(config, screen)
    check_summary(out, summary)
    figures = summary["reward_model"]
    assert (figures["pairs"], figures["held_out"]["n"], figures["steps"]) == (36, 4, 36)
    assert figures["held_out"]["accuracy"] == 1.0
    assert any("reward model: 100.0% of 4 held-out pairs" in note for note in screen.notes)
    trained = load_reward_model(out / "reward_model")
    asked = Prompt("", "List 3 fruits.", "file")
    better, worse = (conversation(asked, f"apple, pear{end}", ()) for end in ".!")
    assert trained.scores([better])[0] > trained.scores([worse])[0]
    judged = {(r["prompt_id"], r["candidate"]): r["score"] for r in rows_of(out, "judgements")}
    candidate = rows_of(out, "candidates")[0]
    prompt = next(r for r in rows_of(out, "prompts") if r["prompt_id"] == candidate["prompt_id"])
    reserved = trained.tokenizer.all_special_tokens
    again = trained.scores([conversation(Prompt(**prompt), candidate["text"], reserved)])[0]
    assert judged[candidate["prompt_id"], candidate["index"]] == pytest.approx(again, abs=1e-4)
    # The answers are M1's, as they are under any reward: its training is undone.
    small(first, tmp_path / "random", reward="random")
    assert rows_of(out, "candidates") == rows_of(tmp_path / "random", "candidates")
    # M1 answered and is the reference: what trained the reward model has left no trace in it.
    m1 = (first / "m1" / "model" / "model.safetensors").read_bytes()
    assert (out / "m1" / "model" / "model.safetensors").read_bytes() == m1
    steps = [r for r in read_jsonl(out / "metrics.jsonl") if r["stage"] == "m2/train"]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    sampled = {(r["prompt_id"], r["index"]): r["logprob"] for r in rows_of(out, "candidates")}
    for row in rows_of(out, "pairs"):
        wanted = sampled[row["prompt_id"], row["chosen_index"]]
        assert row["ref_logps"]["chosen"] == pytest.approx(wanted, abs=2e-3)


def finish(out, **changes):
    return small_run(out, **(SMALL | changes))


@pytest.mark.parametrize("kind", ["model", "constitution", "best-of-n"])
def test_broken_off_by_rows_and_by_stages_it_ends_the_same(
    kind, first, pairs_file, tmp_path, monkeypatch
):
    changes = {"reward": kind}
    if kind == "model":
        changes |= {"reward_pairs_file": str(pairs_file), "reward_training.learning_rate": 1e-3}
        monkeypatch.setattr(reward_model, "PROMPTS_AT_ONCE", 3)
    small(first, tmp_path / "whole", **changes)
    out, tries = tmp_path / "run", 0
    share_first_model(first, out)
    stages = 2 if kind == "model" else 1  # behind them answers are sampled
    breaks = [(state.RunState, "finish", 1)] * stages
    breaks += [(records.RowWriter, "write", count) for count in (9, 14, 13, 5, 2)]
    for owner, name, count in breaks:
        with monkeypatch.context() as patch:
            break_at(patch, owner, name, count)
            try:
                finish(out, **changes)
            except Killed:
                tries += 1
        for path in out.glob("m2/[cjr]*.jsonl"):  # candidates, judgements, revisions
            path.write_bytes(path.read_bytes() + b'{"prompt_id": "torn')
    assert tries >= 5
    finish(out, **changes)
    same(contents(tmp_path / "whole"), contents(out))


def test_asked_to_stop_while_the_reward_model_is_trained(first, pairs_file, tmp_path):
    changes = {
        "reward": "model",
        "reward_pairs_file": str(pairs_file),
        "reward_training.learning_rate": 1e-3,
    }
    small(first, tmp_path / "whole", **changes)
    out = tmp_path / "run"
    share_first_model(first, out)

    def stop():
        rows = read_jsonl(out / "metrics.jsonl")
        return any(r["stage"] == "m1/reward_model" and "step" in r for r in rows)

    with pytest.raises(KeyboardInterrupt):
        run(small_config(out, **(SMALL | changes)), Silent(), stop)
    assert (out / "m1" / "reward_checkpoint.pt").exists()
    assert not (out / "reward_model").exists()
    finish(out, **changes)
    same(contents(tmp_path / "whole"), contents(out))
    assert not (out / "m1" / "reward_checkpoint.pt").exists()


class Fake:
    """A reward model that counts characters and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.tokenizer = AutoTokenizer.from_pretrained(find_folder("tiny"))
        self.tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})

    def scores(self, conversations):
        self.asked += [messages[-1]["content"] for messages in conversations]
        lengths = [len(messages[-1]["content"]) for messages in conversations]
        return [None if n > 20 else math.nan if n == 0 else float(n) for n in lengths]


def candidates(*texts):
    return [Candidate("p", k, text, (1,), 0.0, "stop") for k, text in enumerate(texts)]


def test_what_has_no_score_says_why_and_equal_answers_are_scored_once(tmp_path):
    fake, path = Fake(), tmp_path / "judgements.jsonl"
    group = candidates("abc", "", "x" * 30, "abc", "a<|end|>")
    rows = score_answers(fake, [Prompt("p", "q", "file")], {"p": group}, path, lambda done: None)
    assert [(r.score, r.status) for r in rows] == [
        (3.0, "OK"),
        (None, "NOT_FINITE"),
        (None, "TOO_LONG"),
        (3.0, "OK"),
        (9.0, "OK"),  # the special token was broken up
    ]
    assert fake.asked == ["abc", "", "x" * 30, "a< |end|>"]
    assert len(read_jsonl(path)) == 5
    again = score_answers(fake, [Prompt("p", "q", "file")], {"p": group}, path, lambda done: None)
    assert (again, len(fake.asked)) == (rows, 4)


class Company(Fake):
    """Its scores depend on what is scored with them, as rounding does."""

    def scores(self, conversations):
        return [float(len(conversations) + len(m[-1]["content"])) for m in conversations]


def test_scores_that_are_made_again_have_the_company_they_had(tmp_path):
    prompts = [Prompt(f"p{n}", f"q{n}", "file") for n in range(40)]
    groups = {
        p.prompt_id: [
            dataclasses.replace(c, prompt_id=p.prompt_id) for c in candidates("a", "bb", "a")
        ]
        for p in prompts
    }
    path = tmp_path / "judgements.jsonl"

    def score():
        return score_answers(Company(), prompts, groups, path, lambda done: None)

    whole = score()
    text = path.read_bytes()
    for keep in (0, 1, 47, 48, 49, 95, 100, 119):
        lines = text.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:keep]) + lines[keep][:9])
        assert score() == whole
        assert path.read_bytes() == text


def test_preferences_are_split_by_prompt_and_keep_off_what_is_measured():
    rows = [{"prompt": f"Q{n // 2}", "chosen": [], "rejected": []} for n in range(60)]
    train, held_out = split_preferences(rows, ["q0"], seed=1)
    assert (len(train), len(held_out)) == (52, 6)
    assert not {r["prompt"] for r in train} & {r["prompt"] for r in held_out}
    assert "Q0" not in {r["prompt"] for r in train + held_out}
    assert split_preferences(rows, ["q0"], seed=1)[1] == held_out
    assert split_preferences(rows, ["q0"], seed=2)[1] != held_out
    assert split_preferences(rows[:2], [], seed=1) == (rows[:2], [])
    with pytest.raises(InputError, match="--reward-pairs: found 2 pairs"):
        split_preferences(rows[:2], ["Q0"], seed=1)


def test_turns_that_the_template_refuses_are_named():
    model = with_score_head(load_model("tiny"), 1)
    model.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system turns') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    row = {"prompt": "x", "chosen": turns, "rejected": turns}
    with pytest.raises(InputError, match="of system, user, assistant that .*No system turns"):
        reward_model.reward_pairs(model, [row])
    long = [turns[1], {"role": "assistant", "content": "a " * 5000}]
    short = {"prompt": "x", "chosen": turns[1:], "rejected": turns[1:]}
    kept = reward_model.reward_pairs(model, [short, short | {"rejected": long}])
    assert len(kept) == 1


# ----------------------------------------------------------------------------------- constitution


def test_a_constitution_gives_revision_over_original(first, tmp_path):
    out = tmp_path / "run"
    summary = small(first, out, reward="constitution", revisions=2)
    check_summary(out, summary)
    chains = {row["prompt_id"]: row for row in rows_of(out, "revisions")}
    assert len(chains) == 20
    answers = {(r["prompt_id"], r["index"]): r for r in rows_of(out, "candidates")}
    pairs = rows_of(out, "pairs")
    assert pairs
    for row in pairs:
        chain = chains[row["prompt_id"]]
        assert chain["reason"] is None
        assert len(chain["critiques"]) == 2
        assert (row["chosen_index"], row["rejected_index"]) == (2, 0)
        assert (row["score_chosen"], row["score_rejected"]) == (1.0, 0.0)
        assert row["scores"] == [[0.0], [], [1.0]]
        chosen = answers[row["prompt_id"], 2]
        assert row["chosen"][1]["content"] == chosen["text"] != row["rejected"][1]["content"]
        assert chosen["finish_reason"] == "stop"
    drawn = [step["principle"] for row in chains.values() for step in row["critiques"]]
    assert set(drawn) <= set(range(len(DEFAULT_PRINCIPLES)))
    assert len(set(drawn)) > 3
    dropped = {}
    for row in chains.values():
        if row["reason"]:
            dropped[row["reason"]] = dropped.get(row["reason"], 0) + 1
    found = {name: count for name, count in summary["rounds"][0]["dropped"].items() if count}
    assert found == dropped


def test_chains_that_are_not_whole_are_made_again(first, tmp_path):
    model = load_model(first / "m1" / "model")
    prompts = [
        Prompt(row["prompt"], row["prompt"], "seed")
        for row in read_jsonl(first / "m1" / "sft.jsonl")[:8]
    ]
    files = (tmp_path / "candidates.jsonl", tmp_path / "revisions.jsonl")
    params = SamplingParams(temperature=1.0, max_tokens=24, seed=1)

    def rows():
        RevisionStage(Sampler(model), params, params, DEFAULT_PRINCIPLES, 1, *files).run(prompts)
        return [sorted(map(records.dump_row, read_jsonl(path))) for path in files]

    whole = rows()
    assert len(whole[1]) == 8
    texts = [path.read_bytes().splitlines(keepends=True) for path in files]
    for cut in ((0, 1), (1, 0), (3, 2), (2, 3), (0, 8), (len(texts[0]), 0)):
        for path, lines, count in zip(files, texts, cut, strict=True):
            path.write_bytes(b"".join(lines[: len(lines) - count]) + lines[-1][:9])
        assert rows() == whole, cut


class Script:
    """A sampler that says what it is told to, one text after the other, and keeps the requests."""

    longest = 1600

    def __init__(self, *said):
        self.model, self.said, self.requests = load_model("tiny"), iter(said), []

    def run(self, requests, finished, progress):
        queue = list(requests)
        while queue:
            request = queue.pop(0)
            self.requests.append(request)
            text, finish = next(self.said)
            sample = Sample([5, 6], text, -1.0, None, finish)
            queue += finished(Generation(list(request.prompt_token_ids), [sample], request.tag))

    @property
    def asked(self):
        return [self.model.tokenizer.decode(r.prompt_token_ids) for r in self.requests]


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("A new answer.", "stop", None),
        ("\n", "stop", "empty"),
        ("A new ans", "length", "cut"),
        (" The first.\n", "stop", "identical"),
    ],
)
def test_why_a_revision_makes_no_pair(text, finish, reason, tmp_path):
    script = Script(("The first.", "stop"), ("It is { short }.", "length"), (text, finish))
    files = (tmp_path / "candidates.jsonl", tmp_path / "revisions.jsonl")
    params = SamplingParams(max_tokens=8)
    principle = Principle("Is it kind?", "Make it kinder.")
    stage = RevisionStage(script, params, params, [principle], 1, *files)
    stage.run([Prompt("p", "Say { it }.", "file")])
    assert [read_jsonl(files[1])[0][name] for name in ("reason", "candidates")] == [reason, 2]
    assert [row["text"] for row in read_jsonl(files[0])] == ["The first.", text]
    for part in ("Say { it }.", "The first.", "Is it kind?"):
        assert part in script.asked[1], part
    for part in ("Say { it }.", "The first.", "It is { short }.", "Make it kinder."):
        assert part in script.asked[2], part
    assert stage.figures()["tokens"] == {"answers": 4, "judgements": 2}


def test_each_step_is_drawn_with_a_seed_of_its_own(tmp_path):
    """Equal requests of two steps, or of two rounds, must not be answered the same."""
    seeds = []
    for seed in (1, 2):
        said = ["answer", "critique", "better", "critique", "best"]
        script = Script(*((text, "stop") for text in said))
        files = (tmp_path / f"c{seed}.jsonl", tmp_path / f"r{seed}.jsonl")
        answers, critiques = (SamplingParams(max_tokens=8, seed=s) for s in (seed, 10 * seed))
        stage = RevisionStage(script, answers, critiques, DEFAULT_PRINCIPLES, 2, *files)
        stage.run([Prompt("p", "Say it.", "file")])
        assert [len(stage.candidates["p"]), stage.chains["p"].reason] == [3, None]
        assert "better" in script.asked[3] and "better" in script.asked[4]
        seeds += [request.params.seed for request in script.requests]
    assert len(set(seeds)) == 10


def test_a_prompt_whose_requests_do_not_fit_says_so(tmp_path):
    model = load_model("tiny")
    files = (tmp_path / "candidates.jsonl", tmp_path / "revisions.jsonl")
    params = SamplingParams(max_tokens=model.config.max_position_embeddings - 20)
    stage = RevisionStage(Sampler(model), params, params, DEFAULT_PRINCIPLES, 1, *files)
    stage.run([Prompt("p", "word " * 40, "file")])
    assert read_jsonl(files[1]) == [
        {"prompt_id": "p", "candidates": 0, "critiques": [], "reason": "too_long"}
    ]
    assert stage.figures()["too_long"] == 1


def test_own_principles_are_asked_and_mistakes_in_them_are_told_first(first, tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"critique": "Is it kind?", "revision": "Be kind."}\n')
    out = tmp_path / "run"
    small(first, out, reward="constitution", constitution_file=str(path))
    assert {s["principle"] for r in rows_of(out, "revisions") for s in r["critiques"]} == {0}
    path.write_text('{"critique": "Is it kind?"}\n')
    with pytest.raises(InputError, match="c.jsonl line 1: field 'revision' is missing"):
        small_run(tmp_path / "other", reward="constitution", constitution_file=str(path))
    assert not (tmp_path / "other" / "m1").exists()


# -------------------------------------------------------------------------------------- best of n


def test_best_of_n_teaches_the_top_answers(first, tmp_path):
    out = tmp_path / "run"
    summary = small(first, out, reward="best-of-n")
    check_summary(out, summary)
    (made,) = summary["rounds"]
    top = {row["prompt_id"]: row for row in rows_of(out, "sft")}
    means = {}
    for row in rows_of(out, "judgements"):
        means.setdefault(row["prompt_id"], {}).setdefault(row["candidate"], []).append(row["score"])
    for prompt_id, scores in means.items():
        valid = {
            k: sum(s for s in v if s is not None) / len([s for s in v if s is not None])
            for k, v in scores.items()
            if any(s is not None for s in v)
        }
        assert (prompt_id in top) == bool(valid)
        if valid:
            assert top[prompt_id]["score"] == pytest.approx(max(valid.values()))
            assert valid[top[prompt_id]["index"]] == pytest.approx(max(valid.values()))
    assert made["sft_rows"] == len(top)
    assert made["unread"] == 20 - len(top)
    pairs = rows_of(out, "pairs")
    assert {row["objective"] for row in pairs} == {"sft"}
    assert all(row["chosen_index"] == top[row["prompt_id"]]["index"] for row in pairs)
    steps = [
        r for r in read_jsonl(out / "metrics.jsonl") if r["stage"] == "m2/train" and "step" in r
    ]
    assert steps and steps[0]["margin"] is None  # SFT, no DPO


def test_best_of_n_at_inference_by_the_model_itself(first):
    model = load_model(first / "m1" / "model")
    params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=24, seed=3)
    judge = SamplingParams(n=2, temperature=0.7, max_tokens=64)
    prompts = [row["prompt"] for row in read_jsonl(first / "m1" / "sft.jsonl")[:3]]
    options = {"params": params, "judge_params": judge, "rubric": RUBRIC}
    found = best_of_n(model, prompts, 4, **options)
    assert [len(best.texts) for best in found] == [4, 4, 4]
    for best in found:
        read = [score for score in best.scores if score is not None]
        assert best.score == (max(read) if read else None)
        assert best.text in best.texts
    assert any(best.score is not None for best in found)
    assert best_of_n(model, prompts, 4, **options) == found
    with pytest.raises(ValueError, match="n: 0"):
        best_of_n(model, prompts, 0)


def test_best_of_n_at_inference_by_a_reward_model(first):
    model = load_model(first / "m1" / "model")
    params = SamplingParams(temperature=1.0, max_tokens=12, seed=3)
    too_long = "x " * model.config.max_position_embeddings
    found = best_of_n(model, ["List 3 fruits.", too_long], 5, params=params, reward_model=Fake())
    best = found[0]
    assert best.scores == [
        None if len(text) > 20 or not text else float(len(text)) for text in best.texts
    ]
    assert best.score == max(score for score in best.scores if score is not None)
    assert best.text == best.texts[best.scores.index(best.score)]
    assert (found[1].text, found[1].score, found[1].texts) == ("", None, [])


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--reward", "model"], "found none of --reward-model and --reward-pairs"),
        (
            ["--reward", "model", "--reward-model", "M", "--reward-pairs", "P"],
            "found both of --reward-model and --reward-pairs, wanted exactly one",
        ),
        (
            ["--reward-model", "M"],
            "--reward-model: found with --reward self, wanted --reward model",
        ),
        (
            ["--reward", "frozen", "--reward-pairs", "P"],
            "--reward-pairs: found with --reward frozen, wanted --reward model",
        ),
        (["--constitution", "P"], "--constitution: found with --reward self"),
        (
            ["--revisions", "2"],
            "--revisions: found with --reward self, wanted --reward constitution",
        ),
        (["--reward", "model", "--reward-model", "./nowhere"], "nowhere: no such folder"),
        (["--reward", "model", "--reward-model", "C"], "wanted a ...ForSequenceClassification"),
        (["--reward", "model", "--reward-pairs", "missing.jsonl"], "--reward-pairs"),
    ],
)
def test_mistakes_are_one_line_and_cost_nothing(
    argv, message, folder, pairs_file, first, tmp_path, capsys
):
    names = {"M": str(folder), "P": str(pairs_file), "C": str(first / "m1" / "model")}
    out = tmp_path / "run"
    words = [names.get(word, word) for word in argv]
    assert main([*words, "--iterations", "1", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_another_reward_model_is_another_run(folder, tmp_path, capsys):
    """The fingerprint is of the weights, not of the name."""
    from srlm_fast.config import differences, from_options
    from srlm_fast.run import read_options

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    argv = ["--reward", "model", "--reward-model", str(copy)]
    before = from_options(read_options(argv))
    assert differences(before, from_options(read_options(argv))) == []
    with_score_head(load_model("tiny"), 6).save(copy)
    found = differences(before, from_options(read_options(argv)))
    assert [each.option for each in found] == ["--reward-model (the file's content)"]


def test_gold_reads_the_tiny_worlds_prompts_alone(tmp_path, capsys):
    path, out = tmp_path / "prompts.txt", tmp_path / "run"
    path.write_text("Why is the sky blue?\nHow deep is the sea?\nWho was first?\n")
    arguments = ["--model", "tiny", "--reward", "gold", "--prompts", str(path), "--out", str(out)]
    assert main(arguments) == 2
    assert "--reward gold: found the prompt '" in capsys.readouterr().err
    assert not out.exists()
