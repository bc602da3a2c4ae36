"""score_distribution: six scores with two spellings each, with and without the mass; other ranges,
dtypes and strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels import score_distribution
from tests.kernels.aot import Launch

SIX = {score: (2 * score, 2 * score + 1) for score in range(6)}


def read(
    width: int,
    dtype: torch.dtype = torch.bfloat16,
    ids: dict[int, tuple[int, ...]] = SIX,
    mass: bool = False,
    step: int = 1,
) -> None:
    hidden = torch.zeros(64, step * width, dtype=dtype)[:, ::step]
    score_distribution(hidden, torch.zeros(512, width, dtype=dtype), ids, mass)


def launches(arch: int) -> Iterator[Launch]:
    kernel = {"_scores_kernel"}
    yield Launch("8192", partial(read, 8192), matmul=kernel)
    yield Launch("4096, mass", partial(read, 4096, mass=True), matmul=kernel)
    if arch != 90:
        return
    yield Launch("896, fp16", partial(read, 896, torch.float16), matmul=kernel)
    yield Launch("896, fp32", partial(read, 896, torch.float32))
    yield Launch("77, strided", partial(read, 77, step=2), matmul=kernel)
    hundred = {score: (score,) for score in range(101)}
    yield Launch("4096, 0 to 100", partial(read, 4096, ids=hundred), matmul=kernel)
    two = {1: (1, 2), 2: (3, 4)}
    yield Launch("4096, two choices", partial(read, 4096, ids=two, mass=True), matmul=kernel)
