"""One copy of a decoder's weights over several ranks (Megatron's split, arXiv 1909.08053).

Every rank runs every layer on the whole hidden rows [T, D] with its own heads and its own columns
of the feed-forward: two sums over the ranks per layer, one for the embedding, and one gathering of
logits. Weights are DTensors, so that optimizers, clipping and FSDP know how they lie; what runs
takes `to_local()`, so that no DTensor dispatch is on the way of a token.

Modules keep their identity and get another class, as `fully_shard` does it. It knows a decoder by
its attributes: embed, layers[i].{qkv, o, gate_up, down, heads, head_dim, *norm}, norm, lm_head
(None if tied); its norms run on their `local_weight`. A linear may have an adapter `lora` (factors
A and B, `adapted` parts of some `widths`, run on its `local_factors`) and a quantised matrix
(`scale`, run by its `product`).

Of an adapter the factor on the split side lies as the matrix does: the rows of B where the output
is split, the columns of A where the input is. The other is whole on every rank and sees a part of
the sum, so its gradients are summed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from .collectives import gather_columns, sum_gradient, sum_over_ranks
from .layout import Layout
from .split import Columns, Rows, Split, Whole, gate_and_up, query_key_value, vocabulary

ROW = ("o", "down")  # linears of a layer whose input is split
Logprobs = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def tensor_parallel(model: Any, mesh: DeviceMesh) -> None:
    """Split a decoder in place over a mesh of one dimension; all ranks call it with the same
    weights, or on the meta device before they are there.

    Afterwards all ranks make the same calls in the same order. Differentiable once, unless the
    model has fewer key/value heads than there are ranks. Raises ValueError naming the size that
    does not divide; nothing is changed then.
    """
    if mesh.ndim != 1:
        raise ValueError(f"mesh: {mesh.ndim} dimensions, wanted one: mesh['tensor']")
    if getattr(model, "parallel", None) is not None:
        raise ValueError("model: its weights are split already")
    place = model.embed.weight.device.type
    if place not in (mesh.device_type, "meta"):
        raise ValueError(f"model: on {place}, wanted it on the mesh's {mesh.device_type}")
    splits = _splits(model, mesh.size())
    model.layout = model.parallel = TensorParallel(mesh, splits)
    for name, split in splits.items():
        _distribute(model, name, split, mesh)
    group = mesh.get_group()
    _become(model.embed, VocabularyEmbedding, group)
    for layer in model.layers:
        queries, keys, _ = layer.heads
        keys = max(1, keys // mesh.size())
        layer.heads = (queries // mesh.size(), keys, keys)
        for linear in (layer.qkv, layer.gate_up):
            _become(linear, _split_linear(ColumnLinear, linear.__class__), group)
            _split_adapter(linear, ColumnFactors, group)
        for linear in (layer.o, layer.down):
            _become(linear, _split_linear(RowLinear, linear.__class__), group)
            _split_adapter(linear, RowFactors, group)
        _set_widths(layer)
        for norm in (layer.q_norm, layer.k_norm):  # each rank has some of the heads they apply to
            if getattr(norm, "weight", None) is not None:
                _become(norm, _shared_weight(norm.__class__), group)
        for norm in (layer.attn_norm, layer.mlp_norm):
            _become(norm, _local_weight(norm.__class__), group)
        layer.qkv.has_copies = model.parallel.has_copies
    _become(model.norm, _local_weight(model.norm.__class__), group)


class TensorParallel(Layout):
    """How a model's weights lie on the ranks of a mesh, and its head on the part of one rank."""

    def __init__(self, mesh: DeviceMesh, splits: dict[str, Split]) -> None:
        super().__init__(mesh, splits)
        self.mesh, self.group, self.rank = mesh, mesh.get_group(), mesh.get_local_rank()
        rows = [split for split in splits.values() if isinstance(split, Rows)]
        self.has_copies = any(split.has_copies for split in rows)

    def logits(self, hidden: Tensor, head: Tensor) -> Tensor:
        """hidden [U, D], head [V, D] -> [U, V], the same bits on every rank."""
        own = F.linear(sum_gradient(hidden, self.group), _local(head))
        return gather_columns(own, head.shape[0], self.group)

    def logprobs(self, hidden: Tensor, head: Tensor, targets: Tensor, local: Logprobs) -> Tensor:
        """hidden [N, D], head [V, D], targets [N] -> log-probs [N], the same on every rank.

        local: (hidden, a rank's rows of the head, targets among them) -> their log-probs and
        log-sum-exps [N], differentiable. No rank sees logits of another's rows.
        """
        table = _local(head)
        share = -(-head.shape[0] // self.mesh.size())
        places = targets - self.rank * share
        others = (places < 0) | (places >= len(table))
        hidden = sum_gradient(hidden, self.group)
        logp, lse = local(hidden, table, places.masked_fill(others, 0))
        top = lse.detach().clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=self.group)
        # logp + lse is the target's logit.
        parts = torch.stack(((lse - top).exp(), (logp + lse - top).masked_fill(others, 0)))
        total, logit = sum_over_ranks(parts, self.group)
        return logit - total.log()


class ColumnLinear:
    """x [T, D], whole -> this rank's columns of the output."""

    group: ProcessGroup
    has_copies: bool = False

    def forward(self: Any, x: Tensor) -> Tensor:
        if self.has_copies and torch.is_grad_enabled() and _trains(self):
            # A copied row's gradient would have to be summed over its ranks, and counted once.
            raise ValueError(
                "num_key_value_heads: fewer than the ranks; such a model can be sampled from "
                "(torch.no_grad()), not trained"
            )
        bias = None if self.bias is None else _local(self.bias)
        return _product(self, sum_gradient(x, self.group), bias)


class RowLinear:
    """x: this rank's columns -> [T, D], whole. The bias is added once, to the sum."""

    group: ProcessGroup

    def forward(self: Any, x: Tensor) -> Tensor:
        out = sum_over_ranks(_product(self, x), self.group)
        return out if self.bias is None else out + _local(self.bias)


def _product(linear: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """This rank's part of matrix, bias and adapter."""
    weight, scale = _local(linear.weight), getattr(linear, "scale", None)
    if scale is None:
        out = F.linear(x, weight, bias)
    else:
        out = linear.product(x, weight, _local(scale))
        out = out if bias is None else out + bias
    lora = getattr(linear, "lora", None)
    return out if lora is None else lora(x, out)


def _trains(module: nn.Module) -> bool:
    return any(weight.requires_grad for weight in module.parameters())


@cache
def _split_linear(split: type, kind: Any) -> type[nn.Module]:
    return type(f"{split.__name__}Of{kind.__name__}", (split, kind), {})


class ColumnFactors:
    """A is whole, B has this rank's rows."""

    @property
    def local_factors(self: Any) -> tuple[Tensor, Tensor]:
        return sum_gradient(_local(self.A), self.group), _local(self.B)


class RowFactors:
    """A has this rank's columns, B is whole."""

    @property
    def local_factors(self: Any) -> tuple[Tensor, Tensor]:
        return _local(self.A), sum_gradient(_local(self.B), self.group)


def _split_adapter(linear: Any, factors: type, group: ProcessGroup) -> None:
    lora = getattr(linear, "lora", None)
    if lora is not None:
        _become(lora, _split_linear(factors, lora.__class__), group)


def _set_widths(layer: Any) -> None:
    """Where the parts of this rank's columns lie."""
    widths = {
        "qkv": [heads * layer.head_dim for heads in layer.heads],
        "gate_up": [_local(layer.gate_up.weight).shape[0] // 2] * 2,
    }
    for name, own in widths.items():
        lora = getattr(getattr(layer, name), "lora", None)
        if lora is not None:
            lora.set_widths(own)


class VocabularyEmbedding(nn.Embedding):
    """A row is looked up by the rank that holds it; the others add zeros."""

    group: ProcessGroup

    def forward(self, token_ids: Tensor) -> Tensor:
        table = _local(self.weight)
        share = -(-self.weight.shape[0] // dist.get_world_size(self.group))
        places = token_ids - dist.get_rank(self.group) * share
        others = (places < 0) | (places >= len(table))
        rows = F.embedding(places.masked_fill(others, 0), table)
        return sum_over_ranks(rows.masked_fill(others[:, None], 0), self.group)


@cache
def _local_weight(kind: Any) -> type[nn.Module]:
    """A norm that runs on this rank's plain tensor of its weight, which every rank has whole."""

    def local_weight(self: Any) -> Tensor:
        return _local(self.weight)

    return type(f"Local{kind.__name__}", (kind,), {"local_weight": property(local_weight)})


@cache
def _shared_weight(kind: Any) -> type[nn.Module]:
    """The same for a norm that sees only this rank's heads: its gradient is a sum over ranks."""

    def local_weight(self: Any) -> Tensor:
        return sum_gradient(_local(self.weight), self.group)

    return type(f"Shared{kind.__name__}", (kind,), {"local_weight": property(local_weight)})


def _local(weight: Any) -> Tensor:
    return weight.to_local()


def _splits(model: Any, ranks: int) -> dict[str, Split]:
    """Parameter name -> how it is split. Raises ValueError."""
    first = model.layers[0]
    fused = {
        "qkv": query_key_value(first.heads[:2], first.head_dim, ranks),
        "gate_up": gate_and_up(first.gate_up.out_features // 2, ranks),
    }
    tokens, columns, whole = vocabulary(model.embed.num_embeddings, ranks), Columns(ranks), Whole()
    found: dict[str, Split] = {}
    for name, _ in model.named_parameters():
        *_, module, kind = name.removesuffix(".A").removesuffix(".B").split(".")
        if kind == "lora":
            lora = getattr(first, module).lora
            found[name] = _split_of_factor(lora, name[-1], fused.get(module), columns)
        elif module in fused:
            found[name] = fused[module]
        elif module in ("embed", "lm_head"):
            found[name] = tokens
        elif module in ROW and kind == "weight":
            found[name] = columns
        else:
            found[name] = whole
    return found


def _split_of_factor(lora: Any, factor: str, rows: Rows | None, columns: Columns) -> Split:
    """rows: how the matrix of a column-parallel linear lies, None for a row-parallel one."""
    if rows is None:
        return columns if factor == "A" else Whole()
    if factor == "A":
        return Whole()
    kept = [torch.full((width,), i in lora.adapted) for i, width in enumerate(lora.widths)]
    return rows.only(torch.cat(kept))


def _distribute(model: nn.Module, name: str, split: Split, mesh: DeviceMesh) -> None:
    """Put this rank's part, as a DTensor, in the place of a parameter."""
    path, _, kind = name.rpartition(".")
    module = model.get_submodule(path)
    weight = module._parameters[kind]
    assert weight is not None
    part = split.part(weight.detach(), mesh.get_local_rank())
    shape = list(weight.shape)
    if isinstance(split, Rows):
        shape[0] = len(split.order)
    stride = torch.empty(shape, device="meta").stride()
    spread = DTensor.from_local(
        part, mesh, [split.placement], run_check=False, shape=torch.Size(shape), stride=stride
    )
    module._parameters[kind] = nn.Parameter(spread, weight.requires_grad)


def _become(module: Any, kind: type[nn.Module], group: ProcessGroup) -> None:
    module.__class__ = kind
    module.group = group
