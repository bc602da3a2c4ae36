"""Matmuls on a GPU whose rows have the same bits in any company.

The vendor's library takes another algorithm for another number of rows, and some split the sum over
K. Without such a split, all of its 16-bit algorithms add in the same order: on an H200 (CUDA 13.0,
bf16) the rows of the five matmuls of Llama-3-8B had the same bits for every number of rows tried,
from 1 to 4,096, and at every place. Below `FEWEST_ROWS` that is slow (426 us instead of 42 at K =
14,336), so fewer rows are filled up. In fp32, where it cannot be told so, rows go in blocks of one
size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEWEST_ROWS = 32


ROW_BLOCK = 64


@contextmanager
def invariant_matmuls(dtype: torch.dtype) -> Iterator[None]:
    """Matmuls of activations with weights in here."""
    if dtype not in (torch.bfloat16, torch.float16):
        with RowBlocks():
            yield
        return
    matmul, library = torch.backends.cuda.matmul, torch.backends.cuda.preferred_blas_library()
    names = [f"allow_{kind}_reduced_precision_reduction" for kind in ("bf16", "fp16")]
    before = [(getattr(matmul, n), getattr(matmul, f"{n}_split_k")) for n in names]
    torch.backends.cuda.preferred_blas_library("cublaslt")  # the others cannot be told
    try:
        for name in names:
            setattr(matmul, name, (False, False))
        yield
    finally:
        for name, flags in zip(names, before, strict=True):
            setattr(matmul, name, flags)
        torch.backends.cuda.preferred_blas_library(library)


class RowBlocks(TorchFunctionMode):
    """F.linear, and the addmm_ of adapters, in blocks of `ROW_BLOCK` rows, the last one filled
    up.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.addmm_ and not kwargs:
            out, x, weight = args
            return out.add_(
                torch.cat([_block(part, [weight.T], {}) for part in x.split(ROW_BLOCK)])
            )
        if function is not F.linear or len(args) < 2 or args[0].ndim != 2:
            return function(*args, **kwargs)
        x, *rest = args
        return torch.cat([_block(part, rest, kwargs) for part in x.split(ROW_BLOCK)])


def _block(x: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
    whole = F.pad(x, (0, 0, 0, ROW_BLOCK - len(x)))
    return F.linear(whole, *rest, **kwargs)[: len(x)]
