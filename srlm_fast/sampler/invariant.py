"""Matmuls on a GPU whose rows have the same bits in any company.

The vendor's library takes another algorithm for another number of rows, and some split the sum over
K. Without such a split, all of its algorithms add in the same order: on an H200 (CUDA 13.0, bf16)
the rows of the five matmuls of Llama-3-8B had the same bits for every number of rows from 1 to 4,096
and at every place. Below `FEWEST_ROWS` that is slow (426 us instead of 42 at K = 14,336), so fewer
rows are filled up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEWEST_ROWS = 32


@contextmanager
def invariant_matmuls() -> Iterator[None]:
    """Library matmuls in here do not split K. Only cuBLASLt can be told so."""
    matmul = torch.backends.cuda.matmul
    library = torch.backends.cuda.preferred_blas_library()
    reduced = torch._C._get_cublas_allow_bf16_reduced_precision_reduction()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    matmul.allow_bf16_reduced_precision_reduction = (False, False)
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = reduced
        torch.backends.cuda.preferred_blas_library(library)
