"""Linear layers whose matrix takes one byte a weight and is never trained; a gradient goes through.

W [N, K] = scale weight, with an fp32 scale for each row and the weight in fp8 or int8. The backward
pass is that of y = x W^T in the dtype of x, whatever the forward pass rounds (a straight-through
estimate, arXiv 1308.3432):

    dx = dy W = (dy scale) weight

with the weight widened to the dtype of x, which holds it exactly, in a buffer that all layers of a
model share. Nothing of x is kept for it.

Shape letters: T tokens, K width in, N width out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .decoder import Model

LINEARS = ("qkv", "o", "gate_up", "down")  # of a layer


class Scratch:
    """A buffer for one matrix at a time, made at its first use, as large as the largest needs.

    It stays where it is, so that captured graphs may write to it.
    """

    def __init__(self) -> None:
        self.size = 0
        self._buffer: Tensor | None = None

    def reserve(self, count: int) -> None:
        self.size = max(self.size, count)

    def take(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        held = self._buffer
        if held is None or (held.dtype, held.device) != (dtype, device):
            with torch.inference_mode(False):
                held = torch.empty(self.size, dtype=dtype, device=device)
            self._buffer = held
        return held[: shape.numel()].view(shape)


class QuantisedLinear(nn.Module):
    """y = x W^T + b; x and y in the model's dtype. A kind says how it quantises and multiplies."""

    stored: ClassVar[torch.dtype]
    title: ClassVar[str]

    def __init__(
        self, in_features: int, out_features: int, bias: bool, scratch: Scratch | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.empty(out_features, in_features, dtype=self.stored)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self.scratch = scratch or Scratch()
        self.scratch.reserve(in_features * out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]."""
        y = self.product(x, self.weight, self.scale)
        return y if self.bias is None else y + self.bias

    def product(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """x W^T, for the rows or columns of W that are given. Differentiable in x."""
        return _Product.apply(x, weight, scale, self)

    @classmethod
    def check(cls, device: torch.device, dtype: torch.dtype) -> None:
        """Raise ValueError where a model of this dtype cannot run with such layers."""
        raise NotImplementedError

    @classmethod
    def quantise(cls, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows [N, K] of 16 or 32 bits -> weight [N, K], scale [N, 1] fp32; zeros stay zeros."""
        raise NotImplementedError

    def multiply(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """The forward product, without autograd; a fresh tensor."""
        raise NotImplementedError

    def prepare(self) -> None:
        """What must be found out before a graph is captured, on the weight's device."""

    def widened(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight without its scale in another dtype, until the next call."""
        return self.scratch.take(weight.shape, dtype, weight.device).copy_(weight)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """From a weight [N, K] of 16 or 32 bits."""
        self.set_rows(0, weight)

    @torch.no_grad()
    def set_rows(self, start: int, rows: Tensor) -> None:
        """Quantise rows [start, start + len(rows)), which depend on no others."""
        weight, scale = self.quantise(rows.to(self.weight.device))
        self.weight[start : start + len(rows)].copy_(weight)
        self.scale[start : start + len(rows)].copy_(scale)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, linear: QuantisedLinear
    ) -> Tensor:
        ctx.linear, ctx.weight, ctx.scale = linear, weight, scale  # never changed in training
        return linear.multiply(x, weight, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (grad * ctx.scale.view(1, -1)).to(grad.dtype)
        return scaled @ ctx.linear.widened(ctx.weight, grad.dtype), None, None, None


def quantise_linears(model: Model, kind: type[QuantisedLinear]) -> Model:
    """Put the layers' matrices into `kind`, in place, one after the other, and freeze all weights;
    returns the model.

    Its weights_version changes, as what it computes does. Raises ValueError where that cannot be,
    and has then changed nothing.
    """
    _check(model, kind)
    scratch = Scratch()
    for layer, name in _linears(model):
        setattr(layer, name, _quantised(getattr(layer, name), kind, scratch))
    model.requires_grad_(False)
    model.touch()
    return model


def empty_linears(model: Model, kind: type[QuantisedLinear]) -> None:
    """The same for a model on the meta device, to be filled row by row. Raises ValueError."""
    scratch = Scratch()
    for layer, name in _linears(model):
        linear = getattr(layer, name)
        with torch.device("meta"):
            made = _like(linear, kind, scratch)
            if made.bias is not None:
                made.bias.data = made.bias.to(linear.weight.dtype)
        setattr(layer, name, made)
    model.requires_grad_(False)


def prepare_linears(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            module.prepare()


def quantised_kind(model: nn.Module) -> str | None:
    """What the matrices of a model are stored in, None where it is the model's dtype."""
    return next((m.title for m in model.modules() if isinstance(m, QuantisedLinear)), None)


def _linears(model: Model) -> Iterator[tuple[nn.Module, str]]:
    return ((layer, name) for layer in model.layers for name in LINEARS)


def _check(model: Model, kind: type[QuantisedLinear]) -> None:
    kind.check(model.device, model.dtype)
    if model.parallel is not None or any(hasattr(w, "placements") for w in model.parameters()):
        raise ValueError("model: weights split over ranks, wanted plain tensors")
    for layer, name in _linears(model):
        found = type(getattr(layer, name))
        if found is not nn.Linear:
            place = f"layers.{layer.index}.{name}"
            raise ValueError(f"model: {place} is {found.__name__}, wanted Linear")


def _like(linear: nn.Linear, kind: type[QuantisedLinear], scratch: Scratch) -> QuantisedLinear:
    return kind(linear.in_features, linear.out_features, linear.bias is not None, scratch)


def _quantised(linear: nn.Linear, kind: type[QuantisedLinear], scratch: Scratch) -> QuantisedLinear:
    with torch.device("meta"):
        quantised = _like(linear, kind, scratch)
    quantised.to_empty(device=linear.weight.device)
    quantised.set_weight(linear.weight.detach())
    if linear.bias is not None:
        quantised.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    quantised.prepare()
    return quantised.train(linear.training)
