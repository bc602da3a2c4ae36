"""extract_scores: a lane a row and a warp a row, for both kinds of ids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.judge import compile_pattern
from srlm_fast.kernels import extract_scores
from tests.judge.tokenizers_for_tests import byte_level
from tests.kernels.aot import Launch


def step(dtype: torch.dtype, width: int) -> None:
    ids = torch.zeros(64, width, dtype=dtype)
    extract_scores(ids, torch.zeros(64, dtype=dtype), compile_pattern(byte_level()))


def launches(arch: int) -> Iterator[Launch]:
    yield Launch("chunks, int64", partial(step, torch.int64, 512))
    yield Launch("walk, int64", partial(step, torch.int64, 32))
    if arch != 90:
        return
    yield Launch("chunks, int32", partial(step, torch.int32, 512))
    yield Launch("walk, int32", partial(step, torch.int32, 32))
