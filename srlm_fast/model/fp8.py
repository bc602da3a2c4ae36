"""A model whose layers' matrices are fp8 (e4m3), for sampling only: half of bf16's bytes.

Each row of a matrix has a scale of its own (fp32), and so has each row of what is multiplied with
it, found as it comes (kernels/quantise_rows.py). Embedding, head, norms, biases and the residual
stream stay in bf16. Such a model is not trained (asked for a gradient, its layers refuse), saved or
loaded into; `Model.to` another dtype would lose the scales. A row's result is its own but for the
vendor's matmul, which may add in another order for another number of rows.

Shape letters: T tokens, K width in, N width out.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.quantise_rows import quantise_rows
from .config import ModelConfig
from .decoder import Model

FP8 = torch.float8_e4m3fn
LINEARS = ("qkv", "o", "gate_up", "down")  # of a layer
MULTIPLE, TRIED = 16, 128  # what the matmul wants of K and N; the size it is tried with


class Fp8Linear(nn.Module):
    """y = x W^T + b with W [N, K] = weight scale, fp8 and fp32; x and y in bf16."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.empty(out_features, in_features, dtype=FP8)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [T, K] -> [T, N]. Raises ValueError where a gradient is asked for."""
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "model: fp8 weights, which are for sampling only, wanted bf16 to train"
            )
        x8, scale = quantise_rows(x)
        matmul = scaled_matmul if self.fits and _multiplies(x.device) else scaled_matmul_reference
        y = matmul(x8, scale, self.weight, self.scale, x.dtype)
        return y if self.bias is None else y + self.bias

    @property
    def fits(self) -> bool:
        """Whether the matmul takes these sizes."""
        return not (self.in_features % MULTIPLE or self.out_features % MULTIPLE)

    @torch.no_grad()
    def set_weight(self, weight: Tensor) -> None:
        """From a weight [N, K] of 16 or 32 bits."""
        weight8, scale = quantise_rows(weight)
        self.weight.copy_(weight8)
        self.scale.copy_(scale)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def scaled_matmul_reference(
    x8: Tensor, x_scale: Tensor, weight8: Tensor, weight_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """The specification: x8 [T, K], weight8 [N, K] and a scale for each of their rows -> [T, N],
    summed in fp32.
    """
    return (F.linear(x8.float(), weight8.float()) * x_scale * weight_scale.T).to(dtype)


def scaled_matmul(
    x8: Tensor, x_scale: Tensor, weight8: Tensor, weight_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    return torch._scaled_mm(
        x8,
        weight8.t(),
        scale_a=x_scale,
        scale_b=weight_scale.view(1, -1),
        out_dtype=dtype,
        use_fast_accum=True,
    )


@cache
def _multiplies(device: torch.device) -> bool:
    """Whether this PyTorch multiplies fp8 with a scale for each row on this device: it is tried,
    and a GPU that cannot is told of, as it is slow then.
    """
    if device.type != "cuda":
        return False
    x8, scale = torch.ones(TRIED, TRIED, device=device).to(FP8), torch.ones(TRIED, 1, device=device)
    try:
        scaled_matmul(x8, scale, x8, scale, torch.bfloat16)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(f"no fp8 matmul on {device}, fp32 instead: {reason}", stacklevel=2)
        return False
    return True


def quantise_linears(model: Model) -> Model:
    """Put the layers' matrices into fp8, in place, one after the other; returns the model.

    Its weights_version changes, as what it computes does. Raises ValueError where that cannot be,
    and has then changed nothing.
    """
    _check(model)
    for layer in model.layers:
        for name in LINEARS:
            setattr(layer, name, _quantised(getattr(layer, name)))
    model.touch()
    return model


def _check(model: Model) -> None:
    device, dtype = model.device, str(model.dtype).removeprefix("torch.")
    if device.type not in ("cpu", "cuda") or model.dtype != torch.bfloat16:
        raise ValueError(f"model: {dtype} on {device}, wanted bfloat16 on a GPU or a CPU")
    if model.parallel is not None or any(hasattr(w, "placements") for w in model.parameters()):
        raise ValueError("model: weights split over ranks, wanted plain tensors")
    if model.training:
        raise ValueError("model: in training, wanted it in eval mode; fp8 is for sampling only")
    for index, layer in enumerate(model.layers):
        for name in LINEARS:
            found = type(getattr(layer, name))
            if found is not nn.Linear:
                raise ValueError(f"model: layers.{index}.{name} is {found.__name__}, wanted Linear")


def _quantised(linear: nn.Linear) -> Fp8Linear:
    with torch.device("meta"):
        quantised = Fp8Linear(linear.in_features, linear.out_features, bias=False)
    quantised.to_empty(device=linear.weight.device)
    quantised.set_weight(linear.weight.detach())
    if linear.bias is not None:
        quantised.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    _multiplies(linear.weight.device)  # tried now, not while a graph is captured
    return quantised.eval()


@torch.no_grad()
def random_fp8_model(
    config: ModelConfig, device: torch.device | str, seed: int = 0, std: float | None = None
) -> Model:
    """Normal weights of standard deviation `std` (default hidden_size ** -0.5), norms 1, biases 0,
    drawn on the device. No more than one matrix is ever there in bf16.
    """
    with torch.device("meta"):
        model = Model(config).to(torch.bfloat16)
        for layer in model.layers:
            for name in LINEARS:
                setattr(layer, name, _empty(getattr(layer, name)))
    model.to_empty(device=device)
    model.set_rope()
    draw = torch.Generator(model.device).manual_seed(seed)
    std = config.hidden_size**-0.5 if std is None else std
    for module in model.modules():
        _fill(module, std, draw)
    _multiplies(model.device)
    return model.eval()


def _empty(linear: nn.Linear) -> Fp8Linear:
    sizes = (linear.in_features, linear.out_features)
    quantised = Fp8Linear(*sizes, bias=linear.bias is not None)
    if quantised.bias is not None:
        quantised.bias.data = quantised.bias.to(torch.bfloat16)
    return quantised


def _fill(module: nn.Module, std: float, draw: torch.Generator) -> None:
    """A module's own weights."""
    for name, weight in module.named_parameters(recurse=False):
        if name == "bias":
            weight.zero_()
        elif isinstance(module, Fp8Linear):
            if name == "weight":
                drawn = torch.empty(weight.shape, dtype=torch.bfloat16, device=weight.device)
                module.set_weight(drawn.normal_(0.0, std, generator=draw))
        elif isinstance(module, nn.Linear | nn.Embedding):
            weight.normal_(0.0, std, generator=draw)
        else:
            weight.fill_(1.0)
