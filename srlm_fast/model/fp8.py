"""Layers' matrices in fp8 (e4m3), half of bf16's bytes, multiplied as they are.

Each row of a matrix has a scale of its own (fp32), and so has each row of what is multiplied with
it, found as it comes (kernels/quantise_rows.py). Embedding, head, norms, biases and the residual
stream stay in the model's dtype. The matrices are frozen: what trains is an adapter beside them
(lora.py), whose gradient goes through both roundings as if they were not there (quantised.py).
Sampling and training run the same forward pass. Such a model is saved as an adapter or not at all;
`Model.to` another dtype would lose the scales. A row's result is its own but for the vendor's
matmul, which may add in another order for another number of rows.

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
from .quantised import LINEARS, QuantisedLinear, empty_linears, prepare_linears
from .quantised import quantise_linears as quantise_into

FP8 = torch.float8_e4m3fn
MULTIPLE, TRIED = 16, 128  # what the matmul wants of K and N; the size it is tried with

__all__ = ["FP8", "LINEARS", "Fp8Linear", "quantise_linears", "random_fp8_model"]


class Fp8Linear(QuantisedLinear):
    """y = x W^T + b with W [N, K] = weight scale, fp8 and fp32; x and y in bf16, or fp32 on a
    CPU.
    """

    stored = FP8
    title = "fp8"

    @classmethod
    def check(cls, device: torch.device, dtype: torch.dtype) -> None:
        fits = device.type == "cpu" and dtype == torch.float32
        if not fits and (device.type not in ("cpu", "cuda") or dtype != torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            raise ValueError(f"model: {name} on {device}, wanted bfloat16, or float32 on a CPU")

    @classmethod
    def quantise(cls, rows: Tensor) -> tuple[Tensor, Tensor]:
        return quantise_rows(rows)

    def multiply(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        x8, x_scale = quantise_rows(x)
        fits = not any(size % MULTIPLE for size in weight.shape)
        matmul = scaled_matmul if fits and _multiplies(x.device) else scaled_matmul_reference
        return matmul(x8, x_scale, weight, scale, x.dtype)

    def prepare(self) -> None:
        _multiplies(self.weight.device)


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
    """`quantised.quantise_linears` into fp8."""
    return quantise_into(model, Fp8Linear)


@torch.no_grad()
def random_fp8_model(
    config: ModelConfig, device: torch.device | str, seed: int = 0, std: float | None = None
) -> Model:
    """Normal weights of standard deviation `std` (default hidden_size ** -0.5), norms 1, biases 0,
    drawn on the device. No more than one matrix is ever there in bf16.
    """
    with torch.device("meta"):
        model = Model(config).to(torch.bfloat16)
    empty_linears(model, Fp8Linear)
    model.to_empty(device=device)
    model.set_rope()
    draw = torch.Generator(model.device).manual_seed(seed)
    std = config.hidden_size**-0.5 if std is None else std
    for module in model.modules():
        _fill(module, std, draw)
    prepare_linears(model)
    return model.eval()


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
