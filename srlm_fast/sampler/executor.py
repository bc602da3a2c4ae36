"""Running a planned step: copies, decoder, head, draw.

`Executor` does it at once, natively where the extension and the model allow it, else with PyTorch.
`GraphExecutor` (graph_executor.py) is its counterpart on a GPU; both have `launch` and `collect`,
and `ahead`, the number of steps that may be launched before the first is collected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model import Model
from .packed import PackedDecoder, can_pack
from .paged import PagedCache, PagedContext
from .sampling import sample

# A library's matmul gets whole blocks of rows, so that a row's bits do not depend on their number.
ROW_BLOCK = 64
# Rows of logits that are held at once; scoring a long prompt wants many.
LOGIT_ROWS = 1024

Drawn = tuple[np.ndarray, np.ndarray]  # token_ids [N] int32, logprobs [N] fp32
OnHidden = Callable[[list[int], list[int], Tensor], object]  # request ids, positions, rows [R, D]


class Executor:
    """Steps on a CPU, or on any device in plain PyTorch."""

    ahead = 0

    def __init__(self, model: Model, cache: PagedCache) -> None:
        self.model, self.cache = model, cache
        self.packed = PackedDecoder(model, cache) if can_pack(model) else None

    def launch(self, plan: Any, masks: Tensor | None, on_hidden: OnHidden | None = None) -> Drawn:
        """Run the step that `plan` holds. Its tokens are all known."""
        hidden = self._forward(plan)
        if on_hidden and len(plan.hidden_rows):
            rows = torch.from_numpy(plan.hidden_rows).to(hidden.device)
            on_hidden(plan.hidden_ids.tolist(), plan.hidden_positions.tolist(), hidden[rows])
        drawn = [
            sample(self._logits(hidden, part.logit_rows), part, masks)
            for part in parts(plan, LOGIT_ROWS)
        ]
        if len(drawn) == 1:
            return drawn[0]
        empty = np.empty(0, np.int32), np.empty(0, np.float32)
        tokens, logprobs = zip(*drawn, strict=True) if drawn else ((empty[0],), (empty[1],))
        return np.concatenate(tokens), np.concatenate(logprobs)

    def collect(self, drawn: Drawn) -> Drawn:
        """What `launch` returned; there is nothing to wait for."""
        return drawn

    def _forward(self, plan: Any) -> Tensor:
        """Hidden rows of the step, [T, D]; on torch followed by padding."""
        device = self.model.device
        if len(plan.copies):
            self.cache.copy_pages(torch.tensor(plan.copies, dtype=torch.int64, device=device))
        context = PagedContext(self.cache, plan)
        if self.packed is not None:
            return self.packed.forward(plan, context)
        token_ids = _whole_blocks(torch.tensor(plan.token_ids)).to(device)
        positions = _whole_blocks(torch.tensor(plan.positions)).to(device)
        return self.model(token_ids, positions, context)

    def _logits(self, hidden: Tensor, rows: np.ndarray) -> Tensor:
        """[U, V] for the rows that are sampled from; on torch followed by padding."""
        if self.packed is not None:
            return self.packed.logits(hidden, rows)
        wanted = hidden[torch.tensor(rows, device=hidden.device)]
        return self.model.logits(_whole_blocks(wanted))


# The arrays of a plan with an entry per sampling row.
OF_SAMPLES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "noise_keys",
    "sample_positions",
    "mask_rows",
    "forced",
)


class Part:
    """Those sampling rows of a plan that lie under logit rows first .. stop - 1."""

    def __init__(self, plan: Any, first: int, stop: int) -> None:
        at, to = np.searchsorted(plan.sample_rows, (first, stop))
        self.logit_rows = plan.logit_rows[first:stop]
        self.sample_rows = plan.sample_rows[at:to] - first
        for name in OF_SAMPLES:
            setattr(self, name, getattr(plan, name)[at:to])
        for name in ("history", "banned"):
            setattr(self, name, getattr(plan, name))
            setattr(self, f"{name}_starts", getattr(plan, f"{name}_starts")[at : to + 1])


def parts(plan: Any, rows: int) -> list[Any]:
    """The plan's sampling in pieces of at most `rows` rows of logits; itself if it fits."""
    count = len(plan.logit_rows)
    if 0 < count <= rows:
        return [plan]
    return [Part(plan, first, min(first + rows, count)) for first in range(0, count, rows)]


def _whole_blocks(x: Tensor) -> Tensor:
    """x [T, ...] filled with zeros up to whole blocks of rows."""
    missing = -len(x) % ROW_BLOCK
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x
