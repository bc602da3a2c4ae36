"""Warnings that a run is collapsing: named, with the figure that raised each and its limit.

The limits are those that parted bad rounds from good ones on the embedded tiny model: in every bad
first round seen the output's entropy fell by 31 % or more and the mean log-ratio of rejected
answers ended at -3.3 or below; in good ones they stayed above -12 % and -0.7. A chosen log-ratio
below 0 came with the worst round only; on larger models sound rounds of DPO have small ones too. A
falling share of unique answers and a growing gap of lengths were seen in good rounds as well: they
are figures, not warnings. Falls that no round alone is warned of add up: good runs of two rounds
lost up to 28 % of M1's entropy, so the trend warns at half of it, clear of those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENTROPY_FALL, ENTROPY_TREND = 0.2, 0.5  # share of a round's start, and of M1's
REJECTED_LOGRATIO, CHOSEN_LOGRATIO = -3.0, 0.0  # nats, summed over an answer

Row = Mapping[str, Any]  # of a model or a round, as in summary.json


@dataclass(frozen=True)
class Alarm:
    """A warning. text: one line for a reader."""

    name: str
    figure: float
    limit: float
    text: str


def alarms(models: Sequence[Row], rounds: Sequence[Row]) -> list[Alarm]:
    """The warnings of the last round.

    models, rounds: the rows of `summary.json` up to that round: M1, M2, ... and M2, .... Figures
    that are not there raise nothing. What is compared are figures of consecutive models on the same
    held-out prompts, and what they think of their own answers to them.
    """
    found = [
        entropy_fall(models, rounds),
        entropy_trend(models, rounds),
        rejected_logratio(rounds[-1]),
        chosen_logratio(rounds[-1]),
        self_praise(*models[-2:]),
    ]
    return [alarm for alarm in found if alarm is not None]


def entropy_fall(models: Sequence[Row], rounds: Sequence[Row]) -> Alarm | None:
    """The output's entropy, down by more than a fifth in a round."""
    found = entropies(models, rounds)
    if len(found) < 2:
        return None
    return _fallen("entropy_fall", found[-2], found[-1], ENTROPY_FALL)


def entropy_trend(models: Sequence[Row], rounds: Sequence[Row]) -> Alarm | None:
    """The output's entropy, down by more than half since M1, in more than one round."""
    found = entropies(models, rounds)
    if len(found) < 3:
        return None
    return _fallen("entropy_trend", found[0], found[-1], ENTROPY_TREND)


Entropy = tuple[str, float | None]  # whose it is, nats per token


def entropies(models: Sequence[Row], rounds: Sequence[Row]) -> list[Entropy]:
    """Of each model's held-out answers; where there are none, of the candidates that each round
    sampled from the model before, so without the last model's.
    """
    held_out = [(str(m["name"]), _figure(m, "collapse", "entropy")) for m in models]
    if any(entropy is not None for _, entropy in held_out):
        return held_out
    names = [f"{m['name']}'s candidates" for m in models]
    candidates = [_figure(made, "collapse", "entropy") for made in rounds]
    return list(zip(names, candidates, strict=False))


def _fallen(name: str, start: Entropy, end: Entropy, limit: float) -> Alarm | None:
    (whose, before), (those, after) = start, end
    if not before or after is None or after >= (1 - limit) * before:
        return None
    fall = 1 - after / before
    said = f"output entropy fell by {fall:.0%} to {after:.2f} nats per token of {those}"
    return Alarm(name, fall, limit, f"{said}, from {before:.2f} of {whose}")


def rejected_logratio(made: Row) -> Alarm | None:
    return _below(made, "rejected", REJECTED_LOGRATIO)


def chosen_logratio(made: Row) -> Alarm | None:
    return _below(made, "chosen", CHOSEN_LOGRATIO)


def _below(made: Row, side: str, limit: float) -> Alarm | None:
    """The mean log-ratio of one side at the end of a round's DPO, below its limit. Against M1 as
    the reference of every round the ratios of all rounds add up, so that of the round's first step
    is taken off.
    """
    end, start = (_figure(made, "logratios", name) for name in (side, f"{side}_start"))
    if end is None or (figure := end - (start or 0.0)) >= limit:
        return None
    since = f" from the {start:.2f} of the round's first step" if start is not None else ""
    text = f"mean log-ratio of {side} answers ended at {figure:.2f} nats{since}, below {limit:g}"
    return Alarm(f"{side}_logratio", figure, limit, text)


def self_praise(before: Row, after: Row) -> Alarm | None:
    """The score that the loop gives a model's held-out answers, up from that of the model before,
    while a probe that does not come from the loop is down; both by more than noise.

    What the own score is differs between kinds of reward (`loop/own_score.py`): the model's own
    grades, its preference for its answers over those of the model before (above even), or the
    reward model's scores. The probe is the held-out score where a program gave it, else how well
    the model's judgements agree with people's order. Noise: the 95 % half width of a change that
    was taken prompt by prompt, else the root of the summed squares of both models' half widths, as
    for two independent samples; theirs are on the same prompts, where it errs on the side of
    silence.
    """
    own = _moved(after) or _change(*(_own(model) for model in (before, after)))
    probe = _change(*(_probe(model) for model in (before, after)))
    if own is None or probe is None or own[0] <= own[1] or probe[0] >= -probe[1]:
        return None
    text = (
        f"{_praise(before, after, own[0])}, while the {_probe_name(after)} is {-probe[0]:.2f} "
        f"below (noise: {own[1]:.2f} and {probe[1]:.2f})"
    )
    return Alarm("self_praise", probe[0], -probe[1], text)


def _praise(before: Row, after: Row, change: float) -> str:
    """What the change of the own score says, by its kind."""
    one, other, by = after["name"], before["name"], f"{change:.2f}"
    kind = (after.get("own_score") or {}).get("kind")
    if kind == "preference":
        return f"{one} prefers its own answers to {other}'s by {by} more than evenly"
    if kind == "reward":
        return f"the reward model scores answers of {one} {by} above those of {other}"
    return f"own score of {one} is {by} above that of {other}"


Measured = tuple[float, Sequence[float]]  # a mean and its interval


def _moved(model: Row) -> tuple[float, float] | None:
    """(change, noise of it) of an own score that was held against the model before."""
    figures = model.get("own_score") or {}
    if "change" not in figures:
        return None
    low, high = figures["change_interval"]
    return figures["change"], (high - low) / 2


def _own(model: Row) -> Measured | None:
    figures = model.get("own_score") or {}
    return _measured(figures.get("score"), figures.get("interval"))


def _probe(model: Row) -> Measured | None:
    part, name, interval = _probe_of(model)
    figures = model.get(part) or {}
    return _measured(figures.get(name), figures.get(interval))


def _probe_of(model: Row) -> tuple[str, str, str]:
    if (model.get("eval") or {}).get("judged_by") == "program":
        return "eval", "score", "interval"
    return "judge", "pairwise_accuracy", "pairwise_interval"


def _probe_name(model: Row) -> str:
    named = {"eval": "held-out score", "judge": "judge's agreement with people"}
    return named[_probe_of(model)[0]]


def _measured(mean: float | None, interval: Sequence[float] | None) -> Measured | None:
    return None if mean is None or interval is None else (mean, interval)


def _change(start: Measured | None, end: Measured | None) -> tuple[float, float] | None:
    """(change, noise of it)."""
    if start is None or end is None:
        return None
    halves = [(high - low) / 2 for _, (low, high) in (start, end)]
    return end[0] - start[0], math.hypot(*halves)


def _figure(row: Row, part: str, name: str) -> float | None:
    return (row.get(part) or {}).get(name)
