"""Arguments of the preference losses: those that are no tensors, and the checks of all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from .contracts import check_number, check_tensor

LOSSES = ("sigmoid", "robust", "hinge", "ipo", "simpo")
Pair = tuple[Tensor, Tensor]

_FLOATS = (torch.float32, torch.float64)
_INTS = (torch.int64, torch.int32)
KINDS = {"sigmoid": 0, "hinge": 1, "ipo": 2}


@dataclass(frozen=True)
class Settings:
    """What of the arguments is not a tensor."""

    loss: str
    beta: float
    label_smoothing: float
    gamma: float
    nll_weight: float
    length_normalized: bool
    denominator: float | None

    @property
    def kind(self) -> str:
        """Which f."""
        return "sigmoid" if self.loss in ("robust", "simpo") else self.loss

    @property
    def normalized(self) -> bool:
        return self.length_normalized or self.loss == "simpo"

    @property
    def scale(self) -> float:
        return 1.0 if self.loss == "ipo" else self.beta

    @property
    def label_map(self) -> tuple[float, float]:
        """(factor, offset) that make l' of l."""
        e = self.label_smoothing
        if self.loss == "robust":
            return 1 / (1 - 2 * e), -e / (1 - 2 * e)
        return 1 - 2 * e, e

    @cached_property
    def scalars(self) -> tuple[float, ...]:
        """As the forward kernel takes them."""
        numbers = (self.beta, self.gamma, self.nll_weight, *self.label_map)
        return *numbers, self.denominator or 0.0

    @cached_property
    def switches(self) -> dict[str, Any]:
        """Constants of the forward kernel."""
        nll = self.nll_weight != 0
        return {"KIND": KINDS[self.kind], "NORMALIZED": self.normalized, "HAS_NLL": nll}


def settings_of(*given: Any) -> Settings:
    """Checked once for each set of them: most steps of a run have the same."""
    try:
        return _checked(*given)
    except TypeError:  # not hashable, so none of what is wanted
        return _checked.__wrapped__(*given)


@lru_cache(maxsize=64, typed=True)
def _checked(
    loss: str,
    beta: float,
    label_smoothing: float,
    gamma: float,
    nll_weight: float,
    length_normalized: bool,
    denominator: float | None,
) -> Settings:
    if loss not in LOSSES:
        raise ValueError(f"loss: {loss!r}, wanted one of {', '.join(LOSSES)}")
    check_number("beta", beta, "a number above 0", lambda x: x > 0)
    check_number("label_smoothing", label_smoothing, "0 <= e < 0.5", lambda x: 0 <= x < 0.5)
    check_number("gamma", gamma, "a number of 0 or more", lambda x: x >= 0)
    if gamma != 0 and loss != "simpo":
        raise ValueError(f"gamma: {gamma}, wanted 0: {loss} has no target margin")
    check_number("nll_weight", nll_weight, "a number of 0 or more", lambda x: x >= 0)
    if denominator is not None:
        check_number("denominator", denominator, "a number above 0", lambda x: x > 0)
    # An integer 1 would be another type to a kernel.
    numbers = [float(x) for x in (beta, label_smoothing, gamma, nll_weight)]
    divisor = None if denominator is None else float(denominator)
    return Settings(loss, *numbers, length_normalized, divisor)


def check_pairs(policy, ref, labels, weights, lengths, settings: Settings) -> None:
    for name, value in (("policy", policy), ("ref", ref), ("lengths", lengths)):
        if name == "policy" or value is not None:
            _check_is_pair(name, value)
    first = policy[0]
    check_tensor("policy[0]", first, ("P",), _FLOATS)
    like = (tuple(first.shape), (first.dtype,), first.device)
    check_tensor("policy[1]", policy[1], *like)
    _check_ref_is_there(ref, "(chosen, rejected)", settings)
    needed = settings.normalized or settings.nll_weight != 0
    if needed and lengths is None:
        raise ValueError("lengths: None, wanted (chosen, rejected): the loss divides by them")
    for index in (0, 1):
        if ref is not None:
            check_tensor(f"ref[{index}]", ref[index], *like)
        if lengths is not None:
            check_tensor(
                f"lengths[{index}]", lengths[index], like[0], (*_INTS, first.dtype), first.device
            )
            _check_values(f"lengths[{index}]", lengths[index], math.inf)
    _check_shares(labels, weights, *like)


def check_tokens(logps, boundaries, pairs, ref, labels, weights, settings: Settings) -> None:
    check_tensor("logps", logps, ("T",), _FLOATS)
    check_tensor("boundaries", boundaries, ("S + 1",), _INTS, logps.device)
    check_tensor("pairs", pairs, ("P", 2), _INTS, logps.device)
    num_seqs, num_pairs = boundaries.shape[0] - 1, pairs.shape[0]
    if num_seqs < 0:
        raise ValueError("boundaries: empty, wanted at least [0]")
    if num_seqs == 0 and num_pairs > 0:
        raise ValueError(f"pairs: {num_pairs} of them, wanted none: boundaries hold no sequence")
    _check_ref_is_there(ref, f"[{num_seqs}]", settings)
    if ref is not None:
        check_tensor("ref", ref, (num_seqs,), (logps.dtype,), logps.device)
    _check_shares(labels, weights, (num_pairs,), (logps.dtype,), logps.device)
    if logps.is_cpu:
        _check_token_values(logps, boundaries, pairs)


def _check_token_values(logps: Tensor, boundaries: Tensor, pairs: Tensor) -> None:
    num_seqs = len(boundaries) - 1
    ends = [int(boundaries[0]), int(boundaries[-1])]
    if ends != [0, len(logps)] or bool((boundaries.diff() < 0).any()):
        raise ValueError(f"boundaries: {ends[0]}..{ends[1]}, wanted rising from 0 to {len(logps)}")
    outside = (pairs < 0) | (pairs >= num_seqs)
    if bool(outside.any()):
        raise ValueError(f"pairs: {int(pairs[outside][0])}, wanted 0..{num_seqs - 1}")


def _check_ref_is_there(ref, form: str, settings: Settings) -> None:
    if settings.loss == "simpo" and ref is not None:
        raise ValueError("ref: given, wanted None: simpo has no reference")
    if settings.loss != "simpo" and ref is None:
        raise ValueError(f"ref: None, wanted {form}: {settings.loss} has a reference")


def _check_shares(labels, weights, shape, dtypes, device) -> None:
    for name, value, high in (("labels", labels, 1.0), ("weights", weights, math.inf)):
        if value is None:
            continue
        check_tensor(name, value, shape, dtypes, device)
        _check_values(name, value, high)


def _check_values(name: str, value: Tensor, high: float) -> None:
    if value.device.type != "cpu":
        return
    outside = ~((value >= 0) & (value <= high) & (value < math.inf))
    if bool(outside.any()):
        raise ValueError(f"{name}: {float(value[outside][0])}, wanted each in 0..{high:g}")


def _check_is_pair(name: str, value: object) -> None:
    sequence = isinstance(value, tuple | list)
    if not sequence or len(value) != 2:
        found = f"{type(value).__name__}" + (f" of {len(value)}" if sequence else "")
        raise ValueError(f"{name}: {found}, wanted (chosen, rejected)")
