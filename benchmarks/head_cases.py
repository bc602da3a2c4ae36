"""Cases of the head: shapes of known models, inputs, and what is true of them in fp64.

Hidden states and heads are drawn, not taken from a model: entries of the head N(0, 1/D).

    random    hidden N(0, 1): logits of standard deviation 1, nearly flat. Every 128 x 128 tile of
              probabilities (V = 32,000), or half of them (128,256), holds one above 2^-12, the
              threshold of cut cross-entropy's filter, which then can leave out little
    peaked    hidden_t = s_t times the target's row of the head, s_t from 4 to 24: p from nearly 0
              to nearly 1, and all but 2 to 5 % of the tiles below the threshold

Each case says which share of tiles is above it. Sequences of `length` tokens, the first half of
the sequences chosen, the others rejected; where not all rows count, the first ones of each
sequence are prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from srlm_fast.kernels import dpo_loss_reference

IGNORED = -100
BETA = 0.1
FILTER = 2.0**-12  # of cut cross-entropy, for bf16
TILE = 128
# Rows and vocabulary entries at which gradients are compared.
SAMPLE_ROWS, SAMPLE_COLUMNS = 64, 32
CHUNK_BYTES = 1 << 30


@dataclass(frozen=True)
class Case:
    """goal: "score" (no gradient), "frozen" (hidden's), "trainable" (hidden's and the head's)."""

    model: str
    num_rows: int
    width: int
    vocab: int
    goal: str
    share: float = 1.0
    inputs: str = "random"
    length: int = 512
    dtype: str = "bfloat16"

    @property
    def counted(self) -> int:
        return self.num_rows // self.length * round(self.share * self.length)

    @property
    def gemms(self) -> int:
        """Matmuls of 2 N D V FLOPs that the goal needs, N the rows that count."""
        return {"score": 1, "frozen": 2, "trainable": 3}[self.goal]

    @property
    def flops(self) -> float:
        return 2.0 * self.gemms * self.counted * self.width * self.vocab

    @property
    def has_pairs(self) -> bool:
        """Whether a DPO loss is made of it. A sum of peaked rows says little in bf16."""
        return self.goal != "score" and self.inputs == "random"

    @property
    def name(self) -> str:
        return f"{self.model} {self.goal} {100 * self.share:.0f} % {self.inputs}"

    @property
    def line(self) -> str:
        work = f"{2 * self.gemms} N D V = {self.flops / 1e12:.2f} TFLOP"
        rows = f"{self.num_rows:,} rows, {self.counted:,} count"
        return f"{self.name}: {rows}, D {self.width:,}, V {self.vocab:,}, {self.dtype}, {work}"


@dataclass(frozen=True)
class Inputs:
    """hidden and ref_hidden [T, D], head [V, D], targets and upstream (dL/dlogp) [T]."""

    case: Case
    hidden: Tensor
    head: Tensor
    targets: Tensor
    upstream: Tensor
    ref_hidden: Tensor

    @property
    def wanted(self) -> list[Tensor]:
        """The tensors that need a gradient."""
        return [t for t in (self.hidden, self.head) if t.requires_grad]

    def sequences(self, x: Tensor) -> Tensor:
        """[T, ...] -> [sequences, length, ...]."""
        return x.view(-1, self.case.length, *x.shape[1:])


def make_inputs(case: Case, device: str, seed: int = 0) -> Inputs:
    """The same numbers for every variant."""
    draw = torch.Generator(device).manual_seed(seed)
    like = {"device": device, "generator": draw}
    dtype = getattr(torch, case.dtype)
    head = torch.randn(case.vocab, case.width, **like).mul_(case.width**-0.5).to(dtype)
    targets = torch.randint(case.vocab, (case.num_rows,), **like)
    hidden = torch.randn(case.num_rows, case.width, **like).to(dtype)
    ref_hidden = torch.randn(case.num_rows, case.width, **like).to(dtype)
    if case.inputs == "peaked":
        scale = 4 + 20 * torch.rand(case.num_rows, 1, **like)
        hidden = (head[targets] * scale).to(dtype)
    upstream = torch.randn(case.num_rows, **like)
    prompt = case.length - round(case.share * case.length)
    targets.view(-1, case.length)[:, :prompt] = IGNORED
    hidden.requires_grad_(case.goal != "score")
    head.requires_grad_(case.goal == "trainable")
    return Inputs(case, hidden, head, targets, upstream, ref_hidden)


class Truth:
    """What is true of the inputs, in fp64: log-probs of all rows, gradients of a sample.

    `computes` names the loss: "" is sum of upstream_t logp_t; "sum" is -sum of logp_t; "dpo" is the
    mean DPO loss of the pairs.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.counts = inputs.targets != IGNORED
        self.index = torch.where(self.counts, inputs.targets, 0)
        with torch.no_grad():
            self.head = inputs.head.detach().double()
            self.lse, self.logp = self._logp(inputs.hidden.detach())
        chosen = self.counts.nonzero().squeeze(1)
        places = torch.linspace(0, len(chosen) - 1, min(SAMPLE_ROWS, len(chosen)))
        self.rows = chosen[places.long().to(chosen.device)]
        # Half of them targets, whose gradient is large, half any others.
        others = torch.linspace(0, inputs.case.vocab - 1, SAMPLE_COLUMNS // 2).long()
        some = inputs.targets[self.rows[: SAMPLE_COLUMNS // 2]]
        self.columns = torch.unique(torch.cat([some, others.to(some.device)]))

    def _logp(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """lse and logp [T]; logp 0 in rows that do not count."""
        step = max(CHUNK_BYTES // (8 * self.head.shape[0]), 1)
        lse, target = torch.zeros(2, len(hidden), dtype=torch.float64, device=hidden.device)
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            z = hidden[part].double() @ self.head.T
            target[part] = z.gather(1, self.index[part, None]).squeeze(1)
            lse[part] = torch.logsumexp(z, 1)
        return lse, torch.where(self.counts, target - lse, 0.0)

    @cached_property
    def ref_sums(self) -> Tensor:
        """[sequences]: the reference's log-probs, summed."""
        with torch.no_grad():
            return self.inputs.sequences(self._logp(self.inputs.ref_hidden)[1]).sum(1)

    @cached_property
    def _dpo(self) -> tuple[Tensor, Tensor]:
        """The mean loss, and dL/dlogp [T]."""
        logp = self.logp.detach().requires_grad_()
        sums = self.inputs.sequences(logp).sum(1)
        loss = dpo_loss_reference(sums.chunk(2), self.ref_sums.chunk(2), beta=BETA).mean()
        return loss.detach(), torch.autograd.grad(loss, logp)[0]

    def loss(self, computes: str) -> Tensor:
        if computes == "dpo":
            return self._dpo[0]
        return -self.logp.sum() if computes == "sum" else self.logp @ self.inputs.upstream.double()

    def slope(self, computes: str) -> Tensor:
        """dL/dlogp [T], 0 in rows that do not count."""
        if computes == "dpo":
            slope = self._dpo[1]
        elif computes == "sum":
            slope = torch.full_like(self.logp, -1.0)
        else:
            slope = self.inputs.upstream.double()
        return torch.where(self.counts, slope, 0.0)

    @torch.no_grad()
    def hidden_gradient(self, computes: str) -> Tensor:
        """dL/dhidden of the sampled rows [R, D]."""
        z = self.inputs.hidden.detach()[self.rows].double() @ self.head.T
        p = torch.exp(z - self.lse[self.rows, None])
        away = self.head[self.index[self.rows]] - p @ self.head
        return self.slope(computes)[self.rows, None] * away

    @torch.no_grad()
    def head_gradient(self, computes: str) -> Tensor:
        """dL/dhead of the sampled vocabulary entries [C, D]."""
        hidden = self.inputs.hidden.detach().double()
        p = torch.exp(hidden @ self.head[self.columns].T - self.lse[:, None])
        hit = (self.index[:, None] == self.columns).double()
        return ((hit - p) * self.slope(computes)[:, None]).T @ hidden

    @torch.no_grad()
    def live_tiles(self) -> float:
        """The share of 128 x 128 tiles that the filter of cut cross-entropy would not leave out.

        Of the first 128 rows that count, with the vocabulary in the order of their mean logit.
        """
        rows = self.counts.nonzero().squeeze(1)[:TILE]
        z = self.inputs.hidden.detach()[rows].double() @ self.head.T
        error = torch.exp(z - self.lse[rows, None])
        error.scatter_add_(1, self.index[rows, None], torch.full_like(error[:, :1], -1.0))
        live = (error[:, z.mean(0).argsort()].abs() >= FILTER).any(0)
        return float(torch.stack([tile.any() for tile in live.split(TILE)]).double().mean())
