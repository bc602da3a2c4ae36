"""AdamW over the model's own tensors (arXiv 1711.05101), its schedule and clipping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig


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


class Optimizer:
    """AdamW with fp32 master weights where the model is in half precision.

    Without them lr 1e-6 would not move a bf16 weight: the update is below half a unit in the last
    place. With them gradients of several micro-batches are also summed in fp32.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        self.params: list[Tensor] = [param for param in model.parameters() if param.requires_grad]
        if not self.params:
            raise ValueError("model: no parameter that requires a gradient, wanted at least one")
        self.has_masters = config.master_weights and self.params[0].dtype.itemsize < 4
        self.masters: list[Tensor] = [local(param) for param in self.params]
        if self.has_masters:
            self.masters = [local(param).detach().float() for param in self.params]
        matrices = [weight for weight in self.masters if weight.ndim >= 2]
        others = [weight for weight in self.masters if weight.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": others, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def accumulate(self) -> None:
        """Take over the gradients of one micro-batch."""
        for param, master in zip(self.params, self.masters, strict=True):
            if param.grad is not None and param is not master:
                grad = local(param.grad).to(master.dtype)
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                param.grad = None

    def clip(self, norm: Tensor | None = None) -> Tensor:
        """Scale the gradients to a total norm of at most max_grad_norm; returns the norm before.

        norm: that norm, where this process has only a part of them.
        """
        if norm is None:
            norm = nn.utils.get_total_norm([m.grad for m in self.masters if m.grad is not None])
        nn.utils.clip_grads_with_norm_(self.masters, self.config.max_grad_norm, norm)
        return norm

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        if self.has_masters:
            torch._foreach_copy_([local(param) for param in self.params], self.masters)

    def zero(self) -> None:
        for weight in (*self.params, *self.masters):
            weight.grad = None

    def state(self) -> list[dict[str, Tensor]]:
        """Per parameter: its moments and step count, none before the first step, and its master.
        With the weights, all that the next step depends on.
        """
        found = [dict(self._adamw.state.get(master, {})) for master in self.masters]
        if self.has_masters:
            found = [s | {"master": m} for s, m in zip(found, self.masters, strict=True)]
        return found

    @torch.no_grad()
    def load(self, state: list[dict[str, Tensor]]) -> None:
        for master, saved in zip(self.masters, state, strict=True):
            kinds = dict(saved)
            if self.has_masters:
                master.copy_(kinds.pop("master"))
            if kinds:
                self._adamw.state[master] = kinds


def local(weight: Any) -> Tensor:
    """This rank's plain tensor of a weight, without its graph where the weight is split."""
    return weight.detach().to_local() if hasattr(weight, "to_local") else weight
