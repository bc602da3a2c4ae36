"""sample_tokens: each dtype, with and without masks, rows of any alignment. Each takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels import sample_tokens
from tests.kernels.aot import Launch

LLAMA_2, LLAMA_3, ODD = 32000, 128256, 50257  # vocabularies


def draw(
    vocab: int,
    dtype: torch.dtype = torch.bfloat16,
    masked: bool = False,
    positions: torch.dtype = torch.int64,
) -> None:
    """Two samples, of a row each."""
    ints, zeros = torch.zeros(2, dtype=torch.int32), torch.zeros(2)
    long, starts = torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.int32)
    words = torch.zeros(2, -(-vocab // 32), dtype=torch.int32)
    ids = torch.zeros(16, dtype=torch.int32)
    logits = torch.zeros(2, vocab, dtype=dtype)
    masks = (words, ints) if masked else ()
    sample_tokens(
        logits, ints, zeros, ints, zeros, zeros, zeros, long, long.to(positions),
        ids, starts, ids, starts, *masks,
    )  # fmt: skip


def launches(arch: int) -> Iterator[Launch]:
    yield Launch("128256, masks", partial(draw, LLAMA_3, masked=True))
    if arch != 90:
        return
    yield Launch("128256", partial(draw, LLAMA_3))
    yield Launch("32000, fp32, masks", partial(draw, LLAMA_2, torch.float32, masked=True))
    yield Launch("32000, fp16", partial(draw, LLAMA_2, torch.float16, positions=torch.int32))
    yield Launch("50257, masks", partial(draw, ODD, masked=True))
    yield Launch("50257, fp32", partial(draw, ODD, torch.float32))
