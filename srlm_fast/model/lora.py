"""Low-rank adapters on the linear layers of a frozen decoder (LoRA, arXiv 2106.09685, section 4.1):

    y = W x + b + (alpha / r) B A x,    A [r, K],  B [N, r]

A fused layer (q, k and v; gate and up) has an A and a B for each of its parts, as files have them:
its A's are stacked by rows, so that one matmul of width 3r or 2r serves them all, and its B's are
stacked by rows as the rows of W are. The product is added to the base's output as a side path; it
is never merged into W.

Factors are kept in fp32 (fp64 beside an fp64 base), are what the optimizer moves, and are rounded
to the dtype of x where they are used, in sampling as in training. B begins at zero: a fresh adapter
changes nothing.

Shape letters: T tokens, K width in, N width out, P parts, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .decoder import Layer, Model
from .quantised import quantised_kind
from .weights import put_rows

# A layer's linears and what their parts are called on disk, from the first row down.
PARTS: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
TARGETS = tuple(name for names in PARTS.values() for name in names)


@dataclass(frozen=True)
class LoraConfig:
    """dropout: on what enters A, in training only. Raises ValueError naming the field."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: {self.rank}, wanted 1 or more")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha: {self.alpha}, wanted a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout}, wanted 0 <= dropout < 1")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets:
            found = repr(unknown[0]) if unknown else "none"
            raise ValueError(f"targets: {found}, wanted some of {', '.join(TARGETS)}")


@dataclass(frozen=True)
class Adapter:
    """What a model knows of its adapter. seed: what a fresh one is drawn from."""

    config: LoraConfig
    seed: int


class _LowRank(torch.autograd.Function):
    """y [T, N] += scale B_p (A_p x) in each part's columns of y, which `spans` names."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, spans: list[slice]
    ) -> Tensor:
        inner = F.linear(x, A).mul_(scale)  # [T, P r]
        for span, part, b in zip(spans, inner.chunk(len(spans), 1), _parts(B, spans), strict=True):
            y[:, span].addmm_(part, b.T)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, A, B, inner)
        ctx.scale, ctx.spans = scale, spans
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, inner = ctx.saved_tensors
        grads = [grad[:, span] for span in ctx.spans]
        down = torch.cat([g @ b for g, b in zip(grads, _parts(B, ctx.spans), strict=True)], 1)
        down.mul_(ctx.scale)
        up = [g.T @ part for g, part in zip(grads, inner.chunk(len(grads), 1), strict=True)]
        _, for_x, for_a, for_b, *_ = ctx.needs_input_grad
        return (
            grad,
            down @ A if for_x else None,
            down.T @ x if for_a else None,
            torch.cat(up) if for_b else None,
            None,
            None,
        )


def _parts(B: Tensor, spans: Sequence[slice]) -> tuple[Tensor, ...]:
    return B.split([span.stop - span.start for span in spans])


class Lora(nn.Module):
    """The adapter of one linear: A [P r, K] and B [N of the adapted parts, r].

    widths: rows of each part of the linear; adapted: which of its parts have an adapter.
    """

    def __init__(
        self,
        config: LoraConfig,
        in_features: int,
        widths: Sequence[int],
        adapted: Sequence[int],
        **place: Any,
    ) -> None:
        super().__init__()
        rank, rows = config.rank, sum(widths[i] for i in adapted)
        self.rank, self.scale, self.dropout = rank, config.alpha / config.rank, config.dropout
        self.adapted = tuple(adapted)
        self.A = nn.Parameter(torch.empty(len(adapted) * rank, in_features, **place))
        self.B = nn.Parameter(torch.empty(rows, rank, **place))
        self.set_widths(widths)

    def set_widths(self, widths: Sequence[int]) -> None:
        """Where the parts lie in the columns of y; with split weights, in those of this rank."""
        self.widths = tuple(widths)
        starts = [sum(widths[:i]) for i in self.adapted]
        self.spans = [slice(at, at + widths[i]) for at, i in zip(starts, self.adapted, strict=True)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [T, K], y [T, N] of the base -> y with the adapter's product, written over it."""
        A, B = self.local_factors
        x_in = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return _LowRank.apply(y, x_in, A.to(x.dtype), B.to(x.dtype), self.scale, self.spans)

    @property
    def local_factors(self) -> tuple[Tensor, Tensor]:
        """The plain tensors that run; a split over ranks puts something else here."""
        return self.A, self.B

    def extra_repr(self) -> str:
        return f"rank={self.rank}, scale={self.scale:g}"


class _Adapted:
    """Put before the class of a linear, whose parameters keep their names."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.lora(x, super().forward(x))  # type: ignore[misc]


@cache
def _adapted(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Adapted{kind.__name__}", (_Adapted, kind), {"plain": kind})


def add_lora(model: Model, config: LoraConfig | None = None, seed: int = 0) -> Model:
    """Freeze the model and give its layers a fresh adapter, which is what trains then; returns the
    model. Raises ValueError where it has one, or is split over ranks: that comes afterwards.
    """
    attach_lora(model, config or LoraConfig(), seed)
    reset_lora(model)
    return model


def attach_lora(model: Model, config: LoraConfig, seed: int = 0) -> None:
    """`add_lora` without filling the factors, on a model of any device, meta included."""
    if has_lora(model):
        raise ValueError("model: has an adapter already; wanted one without, or remove_lora before")
    if model.parallel is not None or any(hasattr(w, "placements") for w in model.parameters()):
        raise ValueError("model: weights split over ranks, wanted the adapter before that")
    model.requires_grad_(False)
    place = {"device": model.device, "dtype": torch.promote_types(model.dtype, torch.float32)}
    for layer in model.layers:
        for name, widths in part_widths(layer).items():  # type: ignore[arg-type]
            adapted = [i for i, part in enumerate(PARTS[name]) if part in config.targets]
            if adapted:
                linear: Any = getattr(layer, name)
                linear.lora = Lora(config, linear.in_features, widths, adapted, **place)
                linear.lora.train(linear.training)
                linear.__class__ = _adapted(linear.__class__)
    model.adapter = Adapter(config, seed)
    model.touch()


def part_widths(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Rows of the parts of each of a layer's linears."""
    return {
        "qkv": tuple(heads * layer.head_dim for heads in layer.heads),
        "o": (layer.o.out_features,),
        "gate_up": (layer.gate_up.out_features // 2,) * 2,
        "down": (layer.down.out_features,),
    }


@torch.no_grad()
def reset_lora(model: Model) -> None:
    """Make the adapter a fresh one: A uniform within 1 / sqrt(K), drawn on the CPU, B zero."""
    assert model.adapter is not None
    draw = torch.Generator().manual_seed(model.adapter.seed)
    for name, factor in lora_parameters(model):
        if name.endswith(".B"):
            factor.zero_()
            continue
        bound = factor.shape[1] ** -0.5
        put_rows(model, name, 0, torch.empty(factor.shape).uniform_(-bound, bound, generator=draw))
    model.touch()


def remove_lora(model: Model) -> Model:
    """The base again, trainable unless it is quantised; returns the model."""
    for module in model.modules():
        if isinstance(module, _Adapted):
            del module.lora
            module.__class__ = module.plain  # type: ignore[assignment]
    model.requires_grad_(quantised_kind(model) is None)
    model.adapter = None
    model.touch()
    return model


@torch.no_grad()
def merge_lora(model: Model) -> Model:
    """Add the adapter's product to the weights, in fp32, and take it off; returns the model. Raises
    ValueError where the weights are quantised or split over ranks.
    """
    if kind := quantised_kind(model):
        raise ValueError(f"model: its weights are {kind}, wanted plain ones to add an adapter to")
    if model.layout is not None:
        raise ValueError("model: weights split over ranks, wanted them whole")
    for module in model.modules():
        if isinstance(module, _Adapted):
            linear: Any = module
            lora = linear.lora
            factors = zip(_parts(lora.B, lora.spans), lora.A.chunk(len(lora.spans)), strict=True)
            for span, (up, down) in zip(lora.spans, factors, strict=True):
                rows = linear.weight[span]
                rows.copy_(rows + lora.scale * (up @ down))
    return remove_lora(model)


def lora_parameters(model: Model) -> Iterator[tuple[str, nn.Parameter]]:
    """The factors by name, layer by layer."""
    return ((name, p) for name, p in model.named_parameters() if ".lora." in name)


def has_lora(model: Model) -> bool:
    return model.adapter is not None


def trainable_parameters(model: nn.Module) -> int:
    """Number of weights that training moves."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
