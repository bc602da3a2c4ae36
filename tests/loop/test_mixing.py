"""Rounds that learn from earlier rounds and from people's rows too, and both after a break."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import pytest
from safetensors.torch import load_file

from srlm_fast import load_model
from srlm_fast.config import check, put, recipe
from srlm_fast.loop import run, state, teaching
from srlm_fast.loop.answers import load_candidates
from srlm_fast.loop.mixing import Mixing, dealt
from srlm_fast.loop.rewarding import BestOfNRewarding, RandomRewarding
from srlm_fast.loop.state import derive_seed
from srlm_fast.loop.token_rows import taught_rows, token_pair
from srlm_fast.records import InputError, RowWriter, read_jsonl
from srlm_fast.train import pair_logps
from tests.dist.processes import Ranks
from tests.loop import rank_cases
from tests.loop.test_reference import FAST, metrics
from tests.loop.test_resume import Killed, break_at
from tests.loop.worlds import Silent, results, same, share_first_model, small_config

FAST = FAST | {"num_prompts": 12, "candidates.max_tokens": 16}
MIXED = FAST | {
    "accumulate": "yes",
    "mix_real": 0.25,
    "dpo.real_weight": 0.5,
    "dpo.checkpoint_seconds": 0.0,
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("mixing") / "run"
    with pytest.MonkeyPatch.context() as patch:
        seen = spied(patch)
        summary = run(small_config(out, **MIXED), Silent())
    return out, summary, seen


def spied(patch):
    """What each round's training was given: (pairs, real rows)."""
    seen, train = [], teaching.train_dpo

    def spy(model, pairs, *args, real, **keep):
        seen.append((list(pairs), list(real)))
        return train(model, pairs, *args, real=real, **keep)

    patch.setattr(teaching, "train_dpo", spy)
    return seen


def pairs_of(out, model, made):
    candidates = load_candidates(out / made / "candidates.jsonl", 4)
    return [token_pair(model, row, candidates) for row in read_jsonl(out / made / "pairs.jsonl")]


def variant(out, source, **changes):
    """A run with the M1 of another one."""
    share_first_model(source, out)
    return run(small_config(out, **changes), Silent())


def test_a_round_learns_from_all_pairs_so_far(unbroken):
    out, summary, seen = unbroken
    model = load_model(out / "m2" / "model", device="cpu", dtype="float32")
    first, second = (pairs_of(out, model, made) for made in ("m2", "m3"))
    assert [pairs for pairs, _ in seen] == [first, second + first]
    assert [made["mixed"]["earlier"] for made in summary["rounds"]] == [0, len(first)]
    # The files of the round's own pairs hold nothing else.
    rows = [read_jsonl(out / made / "pairs.jsonl") for made in ("m2", "m3")]
    assert [len(each) for each in rows] == [made["pairs"] for made in summary["rounds"]]
    assert [{row["round"] for row in each} for each in rows] == [{"M2"}, {"M3"}]


def test_earlier_pairs_have_the_reference_of_this_round(unbroken):
    out, _, _ = unbroken
    model = load_model(out / "m2" / "model", device="cpu", dtype="float32")
    rows, earlier = read_jsonl(out / "m2/pairs.jsonl"), read_jsonl(out / "m3/earlier_pairs.jsonl")
    names = ("round", "prompt_id", "chosen_index", "rejected_index")
    assert [[row[n] for n in names] for row in earlier] == [[row[n] for n in names] for row in rows]
    found = [[row["ref_logps"][side] for row in earlier] for side in ("chosen", "rejected")]
    assert found == [value.tolist() for value in pair_logps(model, pairs_of(out, model, "m2"))]
    assert all(a["ref_logps"] != b["ref_logps"] for a, b in zip(earlier, rows, strict=True))
    assert not (out / "m2/earlier_pairs.jsonl").exists()
    # No pair has moved before the first step, the earlier ones neither.
    for made in ("m2", "m3"):
        step = metrics(out, f"{made}/train")[0]
        assert (step["chosen_logratio"], step["margin"]) == pytest.approx((0, 0), abs=1e-4)


def test_real_rows_are_a_share_of_all_dealt_from_one_deck(unbroken):
    out, summary, seen = unbroken
    model = load_model(out / "m1" / "model", device="cpu", dtype="float32")
    seeds = taught_rows(model, read_jsonl(out / "m1" / "sft.jsonl"))
    counts = []
    for (pairs, real), made in zip(seen, summary["rounds"], strict=True):
        assert len(real) == made["mixed"]["real"] == round(len(pairs) / 3)
        counts.append(len(real))
    taken = [real for _, rows in seen for real in rows]
    key = [(tuple(row.prompt_ids), tuple(row.response_ids)) for row in taken]
    deck = Counter((tuple(row.prompt_ids), tuple(row.response_ids)) for row in seeds)
    assert sum(counts) < len(seeds) and not Counter(key) - deck  # none of them twice
    for made, (pairs, real) in zip(("m2", "m3"), seen, strict=True):
        *steps, _ = metrics(out, f"{made}/train")
        assert len(steps) == -(-len(pairs) // 4)  # steps are counted in pairs
        assert sum(row["real_nll"] is not None for row in steps) >= min(len(real), len(steps)) - 1
        pair_loss, nll = math.log(2), steps[0]["real_nll"]
        share = 1 / 5  # of 4 pairs and one row
        assert steps[0]["loss"] == pytest.approx((1 - share) * pair_loss + share * 0.5 * nll, 1e-4)


def test_broken_off_it_ends_the_same(unbroken, tmp_path, monkeypatch):
    """While earlier pairs are written, and twice in the training of the last round."""
    out = tmp_path / "run"
    config = small_config(out, **MIXED)
    share_first_model(unbroken[0], out)
    written, broken = [], []

    def write(self, *rows):
        if self.path.name == "earlier_pairs.jsonl" and not broken:
            broken.append(original(self, *rows[:3]))
            raise Killed
        original(self, *rows)

    original = RowWriter.write
    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "write", write)
        with pytest.raises(Killed):
            run(config, Silent())
    written = read_jsonl(out / "m3" / "earlier_pairs.jsonl")
    assert len(written) == 3
    for steps in (2, 3):
        with monkeypatch.context() as patch:
            break_at(patch, state.RunState, "measure", steps)
            with pytest.raises(Killed):
                run(config, Silent())
    run(config, Silent())
    same(results(unbroken[0]), results(out))
    name = "m3/earlier_pairs.jsonl"
    assert read_jsonl(out / name) == read_jsonl(unbroken[0] / name)


def without(out, source, *stages):
    """A copy of a run in which some stages are not done."""
    shutil.copytree(source, out)
    kept = json.loads((out / "state.json").read_text())
    for stage in stages:
        del kept["stages"][stage]
    (out / "state.json").write_text(json.dumps(kept))


def test_two_ranks_mix_what_one_process_does(unbroken, tmp_path):
    out = tmp_path / "run"
    without(out, unbroken[0], "m3/pairs", "m3/train", "m3/measure")
    for name in ("pairs.jsonl", "earlier_pairs.jsonl"):
        (out / "m3" / name).unlink()
    ranks = Ranks(2)
    try:
        found, _ = ranks(rank_cases.whole_run, str(out), 1, MIXED)
    finally:
        ranks.stop()
    assert found["summary"]["rounds"][1]["mixed"] == unbroken[1]["rounds"][1]["mixed"]
    files = [read_jsonl(each / "m3/earlier_pairs.jsonl") for each in (out, unbroken[0])]
    for ours, theirs in zip(*files, strict=True):
        assert ours.pop("ref_logps") == pytest.approx(theirs.pop("ref_logps"), abs=1e-3)
        assert ours == theirs
    weights = [load_file(each / "m3/model/model.safetensors") for each in (out, unbroken[0])]
    for name in weights[0]:
        assert (weights[0][name] - weights[1][name]).abs().max() < 1e-4, name


def test_lost_earlier_rows_are_named(unbroken, tmp_path):
    out = tmp_path / "run"
    without(out, unbroken[0], "m3/train", "m3/measure")
    for name in ("m3/earlier_pairs.jsonl", "m2/pairs.jsonl", "m2/candidates.jsonl", "m1/sft.jsonl"):
        before = (out / name).read_bytes()
        (out / name).write_bytes(before[: len(before) // 2])
        with pytest.raises(InputError, match=f"{name}: found"):
            run(small_config(out, **MIXED), Silent())
        (out / name).write_bytes(before)
    (out / "m2/pairs.jsonl").write_text('{"a": 1}\n' * unbroken[1]["rounds"][0]["pairs"])
    with pytest.raises(InputError, match="m2/pairs.jsonl: found a row without 'prompt_id'"):
        run(small_config(out, **MIXED), Silent())


def test_a_subsample_has_the_size_of_a_round(unbroken, tmp_path, monkeypatch):
    seen = spied(monkeypatch)
    summary = variant(tmp_path / "run", unbroken[0], **FAST, accumulate="subsample")
    own, earlier = (made["pairs"] for made in reversed(summary["rounds"]))
    assert [len(pairs) for pairs, _ in seen] == [earlier, own]
    model = load_model("tiny")
    new, old = (pairs_of(tmp_path / "run", model, made) for made in ("m3", "m2"))
    mixed = summary["rounds"][1]["mixed"]
    assert mixed["real"] == 0 and 0 < mixed["earlier"] < own
    assert sum(pair in old for pair in seen[1][0]) == mixed["earlier"]
    assert all(pair in new + old for pair in seen[1][0])
    assert len(read_jsonl(tmp_path / "run/m3/earlier_pairs.jsonl")) == mixed["earlier"]
    assert len(read_jsonl(tmp_path / "run/m3/pairs.jsonl")) == own


def test_best_of_n_keeps_the_seeds_and_the_best_of_earlier_rounds(unbroken, tmp_path, monkeypatch):
    seen, train = [], teaching.train_sft

    def spy(model, rows, *args, **keep):
        seen.append(list(rows))
        return train(model, rows, *args, **keep)

    monkeypatch.setattr(teaching, "train_sft", spy)
    # Of so short a training no judge comes: the draw of --reward random stands in for its scores.
    monkeypatch.setattr(BestOfNRewarding, "reward", RandomRewarding.reward)
    changes = FAST | {"reward": "best-of-n", "num_prompts": 6, "judge.sampling.max_tokens": 1}
    summary = variant(tmp_path / "all", unbroken[0], **changes, accumulate="yes")
    best = [made["sft_rows"] for made in summary["rounds"]]
    seeds = len(read_jsonl(tmp_path / "all/m1/sft.jsonl"))
    assert [made["mixed"] for made in summary["rounds"]] == [
        {"real": seeds, "earlier": 0},
        {"real": seeds, "earlier": best[0]},
    ]
    assert [len(rows) for rows in seen] == [best[0] + seeds, sum(best) + seeds]
    assert seen[1][best[1] : sum(best)] == seen[0][: best[0]]
    assert seen[1][sum(best) :] == seen[0][best[0] :]
    summary = variant(tmp_path / "share", unbroken[0], **changes, iterations=1, mix_real=0.5)
    (made,) = summary["rounds"]
    assert made["mixed"] == {"real": made["sft_rows"], "earlier": 0}
    assert len(seen[-1]) == 2 * made["sft_rows"]


def mixing_of(seed=0, **changes):
    """Of the second round of a run that has nothing but its options."""
    config = recipe("default", "tiny")
    for path, value in changes.items():
        config = put(config, path, value)
    folders = [type("Folder", (), {"number": n, "name": f"M{n}"}) for n in (1, 2, 3)]
    names = {"config": config, "folders": folders}
    own = type("Run", (), names | {"seed": lambda *parts: derive_seed(seed, *parts[1:])})
    return Mixing(own(), folders[2])


def test_nothing_is_mixed_unless_asked_for():
    plain = mixing_of()
    assert plain.figures == {} == plain.write_references(3, None) and plain.real(16) == []
    rows, pairs = [{"prompt_id": "p"}], [object()]
    assert plain.with_earlier(rows, pairs) == (rows, pairs)
    assert mixing_of(mix_real=0.1).figures == {"mixed": {"real": 0, "earlier": 0}}


def test_a_deck_is_dealt_to_its_end_before_it_is_shuffled_anew():
    cards = dealt(5, 0, 13, seed=1)
    assert sorted(cards[:5]) == sorted(cards[5:10]) == list(range(5)) and cards[:5] != cards[5:10]
    assert dealt(5, 0, 3, 1) + dealt(5, 3, 4, 1) + dealt(5, 7, 6, 1) == cards
    assert dealt(5, 10, 3, 1) == cards[10:] and dealt(5, 0, 13, 2) != cards


def test_a_draw_takes_all_alike():
    """10 own rows and 30 earlier ones: a quarter of the draw is the round's own on average."""
    found = []
    for seed in range(200):
        places = mixing_of(seed, accumulate="subsample").drawn(10, 20, 10)
        assert sum(map(len, places)) == 10 and all(len(set(each)) == len(each) for each in places)
        found.append([len(each) for each in places])
    means = [sum(each) / len(found) for each in zip(*found, strict=True)]
    assert means == pytest.approx([2.5, 5.0, 2.5], abs=0.4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mix_real": 0.1, "model": "llama-3-8b"}, "--mix-real: found 0.1 without --ift and --eft"),
        ({"mix_real": 0.95}, "--mix-real: found 0.95, wanted a number of at least 0, at most 0.9"),
        ({"accumulate": "some"}, "--accumulate: found 'some', wanted no, yes or subsample"),
        ({"dpo.real_weight": 0.5}, "--real-weight: found 0.5 alone, wanted --mix-real too"),
        (
            {"dpo.real_weight": 2.0, "mix_real": 0.1, "reward": "best-of-n"},
            "--real-weight: found 2 with --reward best-of-n, wanted another reward: there real",
        ),
    ],
)
def test_mistakes(changes, said):
    config = recipe("default", "tiny")
    for path, value in changes.items():
        config = put(config, path, value)
    with pytest.raises(InputError, match=f"^{said}"):
        check(config)
