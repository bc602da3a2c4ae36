"""dpo_loss_tokens: every f, with and without what is optional; short and long sequences."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from srlm_fast.kernels import dpo_loss_tokens
from tests.kernels.aot import Launch

EVERYTHING = {"labels": torch.ones(32), "weights": torch.ones(32), "nll_weight": 0.1}


def step(length: int = 512, index: torch.dtype = torch.int64, **options: Any) -> None:
    """32 pairs, forward and backward."""
    logps = torch.zeros(64 * length, requires_grad=True)
    boundaries = torch.arange(65, dtype=index) * length
    pairs = torch.arange(64, dtype=index).view(32, 2)
    ref = None if options.get("loss") == "simpo" else torch.zeros(64)
    dpo_loss_tokens(logps, boundaries, pairs, ref, **options).loss.backward()


def launches(arch: int) -> Iterator[Launch]:
    yield Launch("sigmoid", step)
    yield Launch("sigmoid, long", partial(step, 4096))
    yield Launch("simpo, everything", partial(step, loss="simpo", gamma=0.5, **EVERYTHING))
    yield Launch("hinge", partial(step, loss="hinge"))
    if arch != 90:
        return
    yield Launch("robust, everything", partial(step, loss="robust", **EVERYTHING))
    yield Launch("hinge, everything", partial(step, 4096, loss="hinge", **EVERYTHING))
    yield Launch("ipo", partial(step, loss="ipo", length_normalized=True))
    yield Launch("ipo, long, everything", partial(step, 4096, loss="ipo", **EVERYTHING))
    yield Launch("simpo, int32", partial(step, loss="simpo", beta=1, index=torch.int32))
