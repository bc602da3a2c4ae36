"""AdamW over the model's own tensors (arXiv 1711.05101), its schedule and clipping.

Bytes per parameter of a bf16 model, its weight (2) and its gradient (2) counted in:

    adamw        16    fp32 moments and fp32 master weights
    adamw-bf16    8    bf16 moments; they and the weights are rounded at random, no masters
    adamw-8bit    6    8-bit moments in blocks of 256 (`block_code.py`); the same

The arithmetic is fp32 for all of them, done piece by piece; they differ in how tensors are kept
between steps (`stores.py`). It is elementwise on what a rank holds of a DTensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from srlm_fast.kernels.norm import norm

from .block_code import BLOCK, BlockCode
from .config import TrainConfig
from .rounding import Noise, fixed_thresholds
from .stores import Coded, Exact, Mastered, Rounded, Store

# Elements at once, a multiple of BLOCK: fp32 copies that stay in a core's cache, or fill a GPU.
PIECE = {"cpu": 1 << 17, "cuda": 1 << 24}


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Rate of step `step` (from 0) of `num_steps`: warm-up, then down to the final fraction.

    The final rate is that of the step behind the last one, so no step is spent at a rate of 0.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(num_steps - config.warmup_steps, 1)
    left = {"linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2, "constant": 1.0}
    floor = 1.0 if config.schedule == "constant" else config.final_fraction
    return config.learning_rate * (floor + (1 - floor) * left[config.schedule])


def bytes_per_parameter(
    optimizer: str,
    dtype: torch.dtype,
    *,
    master_weights: bool | None = None,
    micro_batches: int = 2,
) -> tuple[float, float]:
    """(gradient, state) in bytes for each trained parameter of `dtype`, weights not counted.

    micro_batches: of a step; from two on gradients are summed in fp32, one keeps the weights' own
    dtype.
    """
    wide = _wide(dtype).itemsize
    moments = {"adamw": 2 * wide, "adamw-bf16": 4, "adamw-8bit": 2 + 2 * 4 / BLOCK}
    masters = wide if _has_masters(optimizer, dtype, master_weights) else 0
    return wide if micro_batches > 1 else dtype.itemsize, moments[optimizer] + masters


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The precision of the arithmetic."""
    return torch.promote_types(dtype, torch.float32)


def _has_masters(optimizer: str, dtype: torch.dtype, asked: bool | None) -> bool:
    if dtype == torch.float64 and optimizer != "adamw":
        raise ValueError(f"optimizer: {optimizer!r} for float64 weights, wanted 'adamw'")
    if dtype.itemsize >= 4:
        return False
    if asked is False and dtype != torch.bfloat16:
        raise ValueError(f"master_weights: False for {dtype} weights, wanted True: only bfloat16")
    return asked if asked is not None else optimizer == "adamw" or dtype != torch.bfloat16


@dataclass(frozen=True)
class Trained:
    """A parameter and what the optimizer keeps of it; flat, and this rank's part only."""

    name: str
    parameter: Tensor
    master: Tensor | None
    first: Store
    second: Store
    decay: float
    thresholds: Tensor  # of rounding a master, the same for all parameters

    def weight(self) -> Store:
        weights = local(self.parameter).reshape(-1)  # FSDP may have put it elsewhere
        if self.master is not None:
            return Mastered(self.master, weights, self.thresholds)
        return Exact(weights) if weights.dtype.itemsize >= 4 else Rounded(weights)


class Optimizer:
    """AdamW for the parameters that require a gradient.

    At lr 1e-6 an update is far below half a unit in a bf16 weight's last place: without a master
    it must be rounded at random, or the weight stands still. Random numbers depend on (seed, step,
    parameter, element of the rank's part) alone.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, seed: int = 0) -> None:
        self.config = config
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("model: no parameter that requires a gradient, wanted at least one")
        self.params: list[nn.Parameter] = [parameter for _, parameter in named]
        self.dtype = _wide(self.params[0].dtype)
        self.device = self.params[0].device
        self.num_steps = 0  # applied so far
        self._noise = Noise(seed, self.device)
        make = _moments(config.optimizer, self.dtype, self.device)
        self.piece = PIECE.get(self.device.type, PIECE["cuda"])
        thresholds = fixed_thresholds(self.piece, self.device)
        with torch.no_grad():
            self.trained = [self._trained(name, p, make, thresholds) for name, p in named]
        self._sums: dict[Tensor, Tensor] = {}  # parameter -> fp32 gradient
        self._sum_half = True  # half-precision gradients are taken over into fp32 sums
        self._factor: Tensor | None = None  # from clipping

    def _trained(self, name: str, parameter: Tensor, make: Moments, thresholds: Tensor) -> Trained:
        weights = local(parameter).reshape(-1)
        mastered = _has_masters(self.config.optimizer, weights.dtype, self.config.master_weights)
        decay = self.config.weight_decay if parameter.ndim >= 2 else 0.0
        master = weights.to(self.dtype) if mastered else None
        return Trained(name, parameter, master, *make(len(weights)), decay, thresholds)

    @contextmanager
    def summing(self, several: bool) -> Iterator[None]:
        """Around the backward passes of a step. Half-precision gradients of several, of this rank
        or of others, are summed in fp32, each taken over as soon as it is there, so that they never
        exist all at once.
        """
        self._sum_half = several
        hooks = [
            param.register_post_accumulate_grad_hook(self._take_over)
            for param in self.params
            if self._sum_half and param.dtype.itemsize < 4
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def accumulate(self) -> None:
        """Take over what a backward pass has left in half precision (FSDP's gradients come late).
        A single micro-batch's gradient stays where it is.
        """
        for param in self.params:
            if self._sum_half and param.dtype.itemsize < 4:
                self._take_over(param)

    def _take_over(self, param: Tensor) -> None:
        if param.grad is None:
            return
        if param in self._sums:
            self._sums[param].add_(param.grad)
        else:
            self._sums[param] = param.grad.to(self.dtype)
        param.grad = None

    def gradient(self, param: Tensor) -> Tensor | None:
        """What this step has gathered: this rank's plain tensor."""
        found = self._sums.get(param, param.grad)
        return None if found is None else local(found)

    def gradients(self) -> list[Tensor | None]:
        """Of each parameter in turn."""
        return [self.gradient(param) for param in self.params]

    @torch.no_grad()
    def clip(self, norm: Tensor | None = None) -> Tensor:
        """Let `step` scale the gradients to a total norm of at most max_grad_norm; returns the norm
        before.

        norm: that norm, where this process has only a part of the gradients.
        """
        norm = norm_of(self.gradients()) if norm is None else norm
        self._factor = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self.num_steps += 1
        count = torch.full((), float(self.num_steps), device=self.device)
        for index, trained in enumerate(self.trained):
            grad = self.gradient(trained.parameter)
            if grad is None:
                continue
            stores = (trained.weight(), trained.first, trained.second)
            grads = grad.reshape(-1)
            for start in range(0, len(grads), self.piece):
                piece = slice(start, min(start + self.piece, len(grads)))
                weight, first, second = values = [store.read(piece) for store in stores]
                wide = grads[piece].to(self.dtype)
                self._adamw(weight, first, second, wide, count, rate, trained.decay)
                noise = self._noise.at(self.num_steps, index, start)
                for store, new in zip(stores, values, strict=True):
                    store.write(piece, new, noise)

    def _adamw(
        self,
        weight: Tensor,
        first: Tensor,
        second: Tensor,
        grad: Tensor,
        count: Tensor,
        rate: float,
        decay: float,
    ) -> None:
        """One step in place: all [n] in the precision of the arithmetic."""
        if self._factor is not None:
            grad.mul_(self._factor)
        torch._fused_adamw_(
            [weight],
            [grad],
            [first],
            [second],
            [],
            [count],
            lr=rate,
            beta1=self.config.betas[0],
            beta2=self.config.betas[1],
            weight_decay=decay,
            eps=self.config.eps,
            amsgrad=False,
            maximize=False,
        )

    @property
    def nbytes(self) -> int:
        """Of moments and masters on this rank."""
        masters = sum(0 if t.master is None else t.master.nbytes for t in self.trained)
        return masters + sum(t.first.nbytes + t.second.nbytes for t in self.trained)

    def zero(self) -> None:
        self._sums.clear()
        self._factor = None
        for param in self.params:
            param.grad = None

    def state(self) -> dict[str, Any]:
        """Step count, and moments and masters by parameter name, in the shape of this rank's part:
        with the weights, all that the next step depends on.

        8-bit moments are given as the fp32 numbers that they stand for, on the CPU: loaded into the
        same layout they are the same codes, loaded into another one they are encoded anew.
        """
        return {
            "steps": torch.tensor(self.num_steps),
            "first": {t.name: _saved(t.first, t.parameter) for t in self.trained},
            "second": {t.name: _saved(t.second, t.parameter) for t in self.trained},
            "masters": {
                t.name: t.master.view(local(t.parameter).shape)
                for t in self.trained
                if t.master is not None
            },
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave; its tensors may be those of this optimizer, filled in place."""
        self.num_steps = int(state["steps"])
        for trained in self.trained:
            trained.first.fill(state["first"][trained.name].reshape(-1))
            trained.second.fill(state["second"][trained.name].reshape(-1))
            if trained.master is not None:
                trained.master.copy_(state["masters"][trained.name].reshape(-1))


def local(weight: Any) -> Tensor:
    """This rank's plain tensor of a weight, without its graph where the weight is split."""
    return weight.detach().to_local() if hasattr(weight, "to_local") else weight.detach()


def norm_of(gradients: Sequence[Tensor | None]) -> Tensor:
    """[] of all together, at least fp32: a norm in bf16 has three digits."""
    found = [g for g in gradients if g is not None]
    return torch.linalg.vector_norm(torch.stack([norm(g) for g in found]))


Moments = Callable[[int], tuple[Store, Store]]  # elements -> first and second moment, zeros


def _moments(optimizer: str, wide: torch.dtype, device: torch.device) -> Moments:
    if optimizer == "adamw-8bit":
        codes = BlockCode(signed=True, device=device), BlockCode(signed=False, device=device)
        return lambda size: (Coded(size, codes[0]), Coded(size, codes[1]))
    kind, dtype = (Exact, wide) if optimizer == "adamw" else (Rounded, torch.bfloat16)

    def make(size: int) -> Store:
        return kind(torch.zeros(size, dtype=dtype, device=device))

    return lambda size: (make(size), make(size))


def _saved(store: Store, like: Tensor) -> Tensor:
    whole = store.whole().view(local(like).shape)
    return whole.cpu() if isinstance(store, Coded) else whole
