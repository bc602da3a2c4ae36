"""What the ranks of a test do: optimizer steps on weights that are split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from srlm_fast.dist import device_mesh, shard, tensor_parallel
from srlm_fast.model import Model
from srlm_fast.train import DpoConfig
from srlm_fast.train.optimizer import Optimizer
from srlm_fast.train.ranks import Ranks

from .cases import loss, model_of

RATE, STEPS = 1e-2, 3


def prepared(kind: str, dtype: torch.dtype) -> tuple[Model, DpoConfig]:
    model = model_of("llama").to(dtype)
    model.set_rope()
    model.train()
    config = DpoConfig(optimizer=kind, weight_decay=0.1, max_grad_norm=0.5)
    return model, config


def steps(model: Model, optimizer: Optimizer, ranks: Ranks, micro_batches: int = 2) -> list[float]:
    """Norms of the gradients."""
    norms = []
    for _ in range(STEPS):
        with optimizer.summing(micro_batches > 1):
            for _ in range(micro_batches):
                (loss(model) / micro_batches).backward()
                optimizer.accumulate()
        norm = ranks.norm(optimizer.params, optimizer.gradients())
        norms.append(float(optimizer.clip(norm)))
        optimizer.step(RATE)
        optimizer.zero()
    return norms


def trained(split: str, kind: str, dtype: torch.dtype, again: bool = False) -> dict[str, Any]:
    """split: "tensor" or "data". again: blocks are run again in the backward pass."""
    mesh = device_mesh(2 if split == "tensor" else 1)
    model, config = prepared(kind, dtype)
    model.checkpointing = again
    if split == "tensor":
        tensor_parallel(model, mesh["tensor"])
    else:
        shard(model, mesh["data"])
    optimizer = Optimizer(model, config, seed=7)
    ranks = Ranks(model, mesh)
    norms = steps(model, optimizer, ranks)
    state = optimizer.state()
    for part in ("first", "second", "masters"):
        for key, value in state[part].items():
            like = dict(model.named_parameters())[key]
            assert value.shape == like.to_local().shape, key
    return {
        "norms": norms,
        "weights": {key: whole(model, key, p) for key, p in model.named_parameters()},
        "resumed": resumed(model, optimizer, config, state, ranks),
    }


def whole(model: Model, key: str, weight: Any) -> Tensor:
    """A copy, also of what each rank has whole."""
    if model.parallel is not None:
        return model.parallel.whole(key, weight).clone()
    return weight.detach().full_tensor().clone()


def resumed(
    model: Model, optimizer: Optimizer, config: DpoConfig, state: dict[str, Any], ranks: Ranks
) -> bool:
    """Whether another optimizer that takes up the state goes on with the same bits."""
    before = [p.detach().to_local().clone() for p in model.parameters()]
    other = Optimizer(model, config, seed=7)
    other.load(state)
    ends = []
    for each in (other, optimizer):
        for p, saved in zip(model.parameters(), before, strict=True):
            p.detach().to_local().copy_(saved)
        steps(model, each, ranks)
        ends.append([p.detach().to_local().clone() for p in model.parameters()])
    return all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
