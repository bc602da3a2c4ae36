"""Each warning at its limit, on rows of summary.json."""

from __future__ import annotations

from typing import Any

import pytest

from srlm_fast.eval import alarms


def model(name: str, entropy: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"name": name, "collapse": {"entropy": entropy}, "eval": {}, "judge": None, **more}


def made(name: str, chosen: float | None = 0.1, rejected: float = -0.5, **more: Any) -> Any:
    logratios = None if chosen is None else {"chosen": chosen, "rejected": rejected}
    return {"name": name, "logratios": logratios, **more}


def names(models: list[Any], rounds: list[Any]) -> list[str]:
    return [alarm.name for alarm in alarms(models, rounds)]


def test_a_sound_round_raises_none():
    assert names([model("M1"), model("M2", 0.88)], [made("M2")]) == []


def test_entropy_of_consecutive_models_down_by_over_a_fifth():
    assert names([model("M1"), model("M2", 0.8)], [made("M2")]) == []
    (alarm,) = alarms([model("M1"), model("M2", 0.79)], [made("M2")])
    assert (alarm.name, alarm.limit) == ("entropy_fall", 0.2)
    assert alarm.figure == pytest.approx(0.21)
    assert alarm.text == (
        "output entropy fell by 21% to 0.79 nats per token of M2, from 1.00 of M1"
    )
    slow = [model("M1"), model("M2", 0.85), model("M3", 0.7)]
    assert names(slow, [made("M2"), made("M3")]) == []  # 30 % in two rounds, 18 % in the last


def test_entropy_down_by_over_half_since_the_first_model():
    slow = [model(f"M{t + 1}", 0.81**t) for t in range(5)]
    for t in range(2, 5):
        assert names(slow[:t], [made("M")] * (t - 1)) == []  # 19 % a round, 47 % in three
    (alarm,) = alarms(slow, [made("M")] * 4)
    assert (alarm.name, alarm.limit) == ("entropy_trend", 0.5)
    assert alarm.figure == pytest.approx(1 - 0.81**4)
    assert alarm.text == (
        "output entropy fell by 57% to 0.43 nats per token of M5, from 1.00 of M1"
    )
    # One round is told once.
    assert names([model("M1"), model("M2", 0.4)], [made("M2")]) == ["entropy_fall"]


def test_entropy_of_candidates_where_nothing_is_held_out():
    models = [model(f"M{t}", None) for t in (1, 2, 3)]
    rounds = [made(f"M{t + 1}", collapse={"entropy": e}) for t, e in ((1, 1.0), (2, 0.7))]
    assert names(models[:2], rounds[:1]) == []
    (alarm,) = alarms(models, rounds)
    assert alarm.name == "entropy_fall" and alarm.figure == pytest.approx(0.3)
    assert alarm.text == (
        "output entropy fell by 30% to 0.70 nats per token of M2's candidates, from 1.00 of M1's "
        "candidates"
    )


def test_log_ratios_below_their_limits():
    models = [model("M1"), model("M2")]
    assert names(models, [made("M2", 0.0, -3.0)]) == []
    (rejected,) = alarms(models, [made("M2", 0.2, -3.3)])
    assert (rejected.name, rejected.figure, rejected.limit) == ("rejected_logratio", -3.3, -3.0)
    (chosen,) = alarms(models, [made("M2", -0.01)])
    assert (chosen.name, chosen.figure, chosen.limit) == ("chosen_logratio", -0.01, 0.0)
    assert "chosen answers ended at -0.01 nats, below 0" in chosen.text


def test_log_ratios_against_the_first_model_are_those_of_the_round():
    models = [model(f"M{t}") for t in (1, 2, 3)]

    def last(chosen: float, rejected: float) -> list[Any]:
        row = made("M3", chosen, rejected)
        row["logratios"] |= {"chosen_start": -0.5, "rejected_start": -2.0}
        return [made("M2"), row]

    assert names(models, last(-0.4, -4.9)) == []
    chosen, rejected = sorted(alarms(models, last(-0.6, -5.5)), key=lambda alarm: alarm.name)
    assert (chosen.name, chosen.figure) == ("chosen_logratio", pytest.approx(-0.1))
    assert (rejected.figure, rejected.limit) == (-3.5, -3.0)
    assert rejected.text == (
        "mean log-ratio of rejected answers ended at -3.50 nats from the -2.00 of the round's "
        "first step, below -3"
    )


def test_only_the_last_round_is_told():
    models = [model("M1"), model("M2", 0.5), model("M3", 0.5)]
    assert names(models, [made("M2", -1.0, -9.0), made("M3")]) == []


@pytest.mark.parametrize("before, after", [(None, 0.5), (0.5, None), (0.0, 0.0)])
def test_what_is_not_there_raises_none(before, after):
    assert names([model("M1", before), model("M2", after)], [made("M2", None)]) == []


def around(mean: float, half: float) -> list[float]:
    return [mean - half, mean + half]


def praised(own: float, probe: float, by: str = "program", half: float = 0.1) -> tuple[Any, Any]:
    """Two models and a round. M1 scores itself 3.0, its probe gave 3.0; M2's are given."""
    part, name, interval = (
        ("eval", "score", "interval")
        if by == "program"
        else ("judge", "pairwise_accuracy", "pairwise_interval")
    )
    models = [model(f"M{t}", eval={"judged_by": by, "score": 4 - t}) for t in (1, 2)]
    for row, score, value in zip(models, (3.0, own), (3.0, probe), strict=True):
        row["own_score"] = {"score": score, "interval": around(score, 0.1), "n": 128}
        row[part] = {**(row[part] or {}), name: value, interval: around(value, half)}
    return models, [made("M2")]


def test_self_praise_against_the_programs_score():
    (alarm,) = alarms(*praised(3.2, 2.8))
    assert alarm.name == "self_praise"
    assert (alarm.figure, alarm.limit) == (pytest.approx(-0.2), pytest.approx(-0.1 * 2**0.5))
    assert "own score of M2 is 0.20 above that of M1, while the held-out score is 0.20 below" in (
        alarm.text
    )


def test_self_praise_against_the_judge_where_no_program_scores():
    assert names(*praised(3.2, 2.8, by="M1")) == ["self_praise"]
    assert "judge's agreement with people is 0.20 below" in alarms(*praised(3.2, 2.8, "M1"))[0].text


@pytest.mark.parametrize(
    "own, probe, half",
    [(3.2, 3.2, 0.1), (2.8, 2.8, 0.1), (3.1, 2.8, 0.1), (3.2, 2.9, 0.1), (3.2, 2.8, 0.2)],
    ids=["both rise", "both fall", "own within noise", "probe within noise", "a noisy probe"],
)
def test_no_self_praise(own, probe, half):
    assert names(*praised(own, probe, half=half)) == []


def test_self_praise_needs_both_figures():
    models, rounds = praised(3.2, 2.8)
    for row, key in ((models[1], "eval"), (models[1], "own_score"), (models[0], "own_score")):
        kept = row.pop(key)
        assert names(models, rounds) == []
        row[key] = kept
    assert names(models, rounds) == ["self_praise"]


def test_self_praise_is_of_the_last_model():
    (first, second), rounds = praised(3.2, 2.8)
    assert names([first, second, second], [*rounds, made("M3")]) == []
    assert names([first, first, second], [*rounds, made("M3")]) == ["self_praise"]


@pytest.mark.parametrize(
    ("half", "kind", "said"),
    [
        (0.05, "preference", "M2 prefers its own answers to M1's by 0.12 more than evenly, while"),
        (0.05, "reward", "the reward model scores answers of M2 0.12 above those of M1, while"),
        (0.2, "preference", None),
    ],
)
def test_self_praise_of_an_own_score_held_against_the_model_before(half, kind, said):
    """As under pairwise: a preference for its own answers, 0.12 above even; M1 has none."""
    models, rounds = praised(3.0, 2.8)
    models[0]["own_score"] = None
    models[1]["own_score"] = {
        "kind": kind,
        "score": 0.62,
        "interval": around(0.62, half),
        "change": 0.12,
        "change_interval": around(0.12, half),
        "against": "M1",
    }
    found = alarms(models, rounds)
    assert [alarm.name for alarm in found] == ["self_praise"] * bool(said)
    if said:
        assert found[0].text.startswith(said)
        assert "(noise: 0.05 and" in found[0].text
