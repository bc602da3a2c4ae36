"""How often a model A beats a model B, raw and with length controlled.

With y the outcome of a comparison (1 where A wins, 1/2 for a tie, 0 where B wins), d the characters
of A's answer less those of B's, and s the standard deviation of d,

    win rate                   = mean of y
    P(A wins | d)              = sigmoid(theta + phi tanh(d / s))
    length-controlled win rate = sigmoid(theta), at equal lengths

as in AlpacaEval 2 (arXiv 2404.04475), without its third term, how hard each instruction is for the
baseline: that is learnt from many models, and here are two. theta and phi minimise the
cross-entropy plus RIDGE / 2 (theta^2 + phi^2): a prior of standard deviation RIDGE^-1/2 = 32
logits, which keeps them finite where outcomes are all alike or follow from length. The unit of
every interval is the prompt, since comparisons of one prompt hang together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, stdtrit

from srlm_fast.eval.interval import ratio_interval
from srlm_fast.judge.duels import Duel

OUTCOMES = {"win": 1.0, "tie": 0.5, "loss": 0.0}
RIDGE = 1e-3
STEPS, TOLERANCE = 200, 1e-10
Array = np.ndarray


def win_rate(duels: Sequence[Duel]) -> dict[str, Any]:
    """All figures of A against B.

    win, tie, loss: comparisons; n: their sum; prompts: that they come from; shares of n, with
    intervals: of each, 95 %, over prompts.
    win_rate: of A, a tie is half; interval: 95 %, over prompts. identical: ties of one text, which
    no judge saw. unread: comparisons that count as nothing, by status. length_controlled: as
    `length_controlled`. length_only: the figures of a "judge" that counts characters. longer_wins:
    over comparisons of different lengths, the share that the longer answer wins. length_mean:
    characters of A's and B's answers. position: of a judge that was asked in both orders, the share
    of comparisons in which they disagree (ties, by that), and of verdicts that name the answer
    shown first (0.5 for no preference). A figure with nothing to measure is None.
    """
    read = [duel for duel in duels if duel.outcome is not None]
    unread = Counter(duel.status.lower() for duel in duels if duel.outcome is None)
    return {
        **_outcomes(read),
        "identical": sum(duel.identical for duel in read),
        "unread": dict(sorted(unread.items())),
        "length_controlled": length_controlled(read),
        "length_only": _outcomes([_by_length(duel) for duel in read]),
        "longer_wins": _longer_wins(read),
        "length_mean": _mean_lengths(duels),
        "position": _position([duel for duel in read if duel.orders is not None]),
    }


def _outcomes(read: Sequence[Duel]) -> dict[str, Any]:
    counts = Counter(duel.outcome for duel in read)
    named, n = {name: counts[value] for name, value in OUTCOMES.items()}, len(read)
    return {
        **named,
        "n": n,
        "prompts": len({duel.prompt_id for duel in read}),
        "shares": {name: count / n for name, count in named.items()} if n else None,
        "intervals": {name: _interval(read, _is(value)) for name, value in OUTCOMES.items()},
        "win_rate": (named["win"] + named["tie"] / 2) / n if n else None,
        "interval": _interval(read, lambda duel: duel.outcome or 0.0),
    }


def _is(outcome: float) -> Callable[[Duel], float]:
    return lambda duel: float(duel.outcome == outcome)


def _interval(duels: Sequence[Duel], part: Callable[[Duel], float]) -> list[float] | None:
    """Of the mean of `part`, over prompts."""
    sums: dict[str, tuple[float, int]] = {}
    for duel in duels:
        value, count = sums.get(duel.prompt_id, (0.0, 0))
        sums[duel.prompt_id] = value + part(duel), count + 1
    return ratio_interval(list(sums.values()))


def _share(duels: Sequence[Duel], part: Callable[[Duel], float]) -> dict[str, Any]:
    share = math.fsum(map(part, duels)) / len(duels) if duels else None
    return {"share": share, "interval": _interval(duels, part), "n": len(duels)}


def _difference(duel: Duel) -> int:
    return duel.lengths[0] - duel.lengths[1]


def _by_length(duel: Duel) -> Duel:
    """What a judge that counts characters would say."""
    longer = _difference(duel)
    outcome = 0.5 if not longer else float(longer > 0)
    return Duel(duel.prompt_id, duel.first, duel.second, outcome, duel.lengths)


def _longer_wins(read: Sequence[Duel]) -> dict[str, Any]:
    def won(duel: Duel) -> float:
        assert duel.outcome is not None
        return duel.outcome if _difference(duel) > 0 else 1 - duel.outcome

    return _share([duel for duel in read if _difference(duel)], won)


def _mean_lengths(duels: Sequence[Duel]) -> dict[str, float] | None:
    """Of answers, each once."""
    ours = {(duel.prompt_id, duel.first): duel.lengths[0] for duel in duels}
    theirs = {(duel.prompt_id, duel.second): duel.lengths[1] for duel in duels}
    means = [math.fsum(found.values()) / max(len(found), 1) for found in (ours, theirs)]
    return {"a": means[0], "b": means[1]} if duels else None


def _position(asked: Sequence[Duel]) -> dict[str, Any] | None:
    def orders(duel: Duel) -> tuple[int, int]:
        assert duel.orders is not None
        return duel.orders

    def first_named(duel: Duel) -> float:
        a_first, b_first = orders(duel)
        return ((1 + a_first) / 2 + (1 - b_first) / 2) / 2

    if not asked:
        return None
    return {
        "disagree": _share(asked, lambda duel: float(orders(duel)[0] * orders(duel)[1] < 0)),
        "first": _share(asked, first_named),
    }


def length_controlled(read: Sequence[Duel]) -> dict[str, Any] | None:
    """win_rate: of A at equal lengths; interval: 95 %, over prompts; length_effect: phi in logits,
    above 0 where the longer answer is favoured. extrapolated: one model's answers are longer
    throughout, so that no comparison stands near equal lengths. None where a judge saw none.

    Identical texts, which no judge saw, take no part in the fit; in win_rate they are the ties that
    they are at any length: with a share s of them it is (1 - s) sigmoid(theta) + s / 2.

    The interval is that of theta by the delta method, clustered by prompt (Huber's and White's
    sandwich), Student's t, and also holds each theta at which the best loss rises by no more than
    t^2 / 2 times the share of comparisons that are no tie (a tie has no variance): a few on the
    wrong side show the sandwich too little spread. A fit that leaves none but ties there shows
    nearly none: then a prompt counts once, and ties in full. That of s is added in squares, each
    side by itself (Zou and Donner's MOVER).
    """
    seen = [duel for duel in read if not duel.identical]
    if not seen:
        return None
    differences = np.array([_difference(duel) for duel in seen], dtype=np.float64)
    outcomes = np.array([duel.outcome for duel in seen], dtype=np.float64)
    _, prompts = np.unique([duel.prompt_id for duel in seen], return_inverse=True)
    design = np.stack([np.ones(len(seen)), _standardised(differences)], axis=1)
    theta, phi = fitted = fit_logistic(design, outcomes)
    bounds = _bounds(design, outcomes, fitted, prompts)
    same, rate = 1 - len(seen) / len(read), float(expit(theta))
    return {
        "win_rate": (1 - same) * rate + same / 2,
        "interval": None if bounds is None else _with_same(read, same, rate, expit(bounds)),
        "length_effect": float(phi),
        "extrapolated": bool((differences > 0).all() or (differences < 0).all()),
    }


def _with_same(read: Sequence[Duel], same: float, rate: float, bounds: Array) -> list[float]:
    """Of (1 - same) rate + same / 2. bounds: of rate; same: the share of `identical`."""
    spread = _interval(read, lambda duel: float(duel.identical)) if same else None
    less, more = spread or (same, same)
    if rate > 0.5:  # then more of the same is less
        less, more = more, less
    middle, pull = (1 - same) * rate + same / 2, 0.5 - rate
    low = math.hypot((1 - same) * (rate - bounds[0]), pull * (less - same))
    high = math.hypot((1 - same) * (bounds[1] - rate), pull * (more - same))
    return [max(middle - low, 0.0), min(middle + high, 1.0)]


def _standardised(differences: Array) -> Array:
    """tanh(d / s); where all d are the same, its limit."""
    spread = differences.std()
    return np.tanh(differences / spread) if spread else np.sign(differences)


def fit_logistic(design: Array, outcomes: Array, offset: float = 0.0) -> Array:
    """[K] weights that minimise the cross-entropy of offset + design [N, K] weights with outcomes
    [N] in [0, 1], plus the ridge: Newton's method, steps halved where they would go up.
    """
    weights = np.zeros(design.shape[1])
    for _ in range(STEPS):
        p = expit(offset + design @ weights)
        gradient = design.T @ (p - outcomes) + RIDGE * weights
        step = np.linalg.solve(_curvature(design, p), gradient)
        here = _loss(design, outcomes, weights, offset)
        while np.abs(step).max() > TOLERANCE:
            if _loss(design, outcomes, weights - step, offset) <= here:
                break
            step = step / 2
        weights = weights - step
        if np.abs(step).max() <= TOLERANCE:
            break
    return weights


def _loss(design: Array, outcomes: Array, weights: Array, offset: float = 0.0) -> float:
    logits = offset + design @ weights
    entropy = np.logaddexp(0, logits) - outcomes * logits
    return float(entropy.sum() + RIDGE / 2 * (weights @ weights))


def _curvature(design: Array, p: Array) -> Array:
    """Second derivative of the loss at the probabilities p [N]."""
    return (design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(design.shape[1])


def _bounds(
    design: Array, outcomes: Array, fitted: Array, prompts: Array
) -> tuple[float, float] | None:
    """Of theta; None for fewer than two prompts. prompts: [N], their numbers."""
    count = int(prompts.max()) + 1
    if count < 2:
        return None
    t = float(stdtrit(count - 1, 0.975))
    half = t * _sandwich(design, outcomes, fitted, prompts)
    decided = outcomes != 0.5
    separated = ((2 * outcomes - 1) * (design @ fitted) > 0)[decided].all()
    weight = len(outcomes) / count if separated else decided.mean()
    low, high = _profile(design, outcomes, fitted, float(t**2 / 2 * weight))
    return min(fitted[0] - half, low), max(fitted[0] + half, high)


def _sandwich(design: Array, outcomes: Array, fitted: Array, prompts: Array) -> float:
    """Standard error of theta."""
    count, p = int(prompts.max()) + 1, expit(design @ fitted)
    scores = np.zeros((count, len(fitted)))
    np.add.at(scores, prompts, design * (outcomes - p)[:, None])
    bread = np.linalg.inv(_curvature(design, p))
    filling = scores.T @ scores * count / (count - 1)
    return math.sqrt((bread @ filling @ bread)[0, 0])


def _profile(design: Array, outcomes: Array, fitted: Array, most: float) -> tuple[float, float]:
    """The two theta at which the loss, least over phi, is `most` above the least of all."""
    least, length = _loss(design, outcomes, fitted), design[:, 1:]

    def above(theta: float) -> float:
        loss = _loss(length, outcomes, fit_logistic(length, outcomes, theta), theta)
        return loss + RIDGE / 2 * theta**2 - least - most

    def bound(sign: int) -> float:
        reach = 1.0
        while above(fitted[0] + sign * reach) < 0:  # ends: the ridge grows without bound
            reach *= 2
        return float(brentq(above, fitted[0], fitted[0] + sign * reach, xtol=1e-6))

    return bound(-1), bound(1)
