"""linear_logprob: both forms of the row kernels, every tile of the fused matmul."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from srlm_fast.kernels import linear_logprob
from srlm_fast.kernels.head_softmax import FEW_ROWS, head_softmax
from srlm_fast.kernels.logit_rows import Transform
from tests.kernels.aot import Launch

MATMUL = {"_tiles_kernel"}
LLAMA_2, LLAMA_3, ODD = 32000, 128256, 50257  # vocabularies


def through(vocab: int, dtype: torch.dtype, frozen: bool, **options) -> None:
    """Forward and backward of the public function; four rows, so that the matmuls are quick."""
    hidden = torch.zeros(4, 16, dtype=dtype, requires_grad=True)
    head = torch.zeros(vocab, 16, dtype=dtype, requires_grad=not frozen)
    bias = torch.zeros(vocab, dtype=dtype) if options.pop("bias", False) else None
    # With lse and entropy the logits are made again, and the row kernels are the route.
    options |= {"return_lse": True, "return_entropy": options.pop("entropy", False)}
    values = linear_logprob(hidden, head, torch.zeros(4, dtype=torch.int64), bias, **options)
    sum(value.sum() for value in values if value is not None).backward()


def fused(num_rows: int, depth: int, vocab: int, dtype: torch.dtype, **options) -> None:
    hidden, head = torch.zeros(num_rows, depth, dtype=dtype), torch.zeros(vocab, depth, dtype=dtype)
    bias = torch.zeros(vocab, dtype=dtype) if options.pop("bias", False) else None
    if options.pop("store", False):
        options |= {"offset": torch.zeros(num_rows), "out": torch.zeros(num_rows, vocab).to(dtype)}
    transform = Transform(options.pop("softcap", None))
    head_softmax(hidden, head, bias, torch.zeros(num_rows).long(), transform, **options)


def launches(arch: int) -> Iterator[Launch]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32

    def rows(name: str, *args, **options) -> Launch:
        return Launch(f"rows: {name}", partial(through, *args, **options))

    def tiles(name: str, *args, **options) -> Launch:
        return Launch(f"tiles: {name}", partial(fused, *args, **options), MATMUL)

    yield rows("bf16, 32000, frozen", LLAMA_2, bf16, True)
    yield rows("bf16, 128256, trainable", LLAMA_3, bf16, False)
    yield tiles("score", 256, 2048, LLAMA_2, bf16)
    yield tiles("store", 256, 896, 4096, bf16, store=True)
    yield tiles("few rows", FEW_ROWS, 2048, LLAMA_2, bf16)
    # The heaviest of each table of tiles.
    everything = {"softcap": 30.0, "bias": True, "with_moment": True}
    yield tiles("store, everything", 256, 896, 4096, bf16, store=True, **everything)
    yield tiles("pointers, store, everything", 256, 60, 4096, bf16, store=True, **everything)
    yield tiles("few rows, everything", 16, 896, 4096, bf16, store=True, **everything)
    yield tiles("few rows, pointers, store", 16, 60, 4096, bf16, store=True, **everything)
    if arch != 90:
        return
    yield rows("bf16, 50257, bias, entropy", ODD, bf16, False, bias=True, entropy=True)
    yield rows("bf16, 32000, bias, entropy", LLAMA_2, bf16, True, bias=True, entropy=True)
    yield rows("bf16, softcap, entropy", LLAMA_3, bf16, True, softcap=30.0, entropy=True)
    yield rows("fp16", LLAMA_2, fp16, False)
    yield rows("fp32", LLAMA_2, fp32, True, temperature=0.7)
    yield tiles("score, fp16, entropy", 256, 2048, LLAMA_2, fp16, with_moment=True)
    yield tiles("score, softcap, bias", 256, 4096, LLAMA_2, bf16, softcap=30.0, bias=True)
    yield tiles(
        "store, bias, entropy", 256, 896, 4096, bf16, store=True, bias=True, with_moment=True
    )
    yield tiles("rows that no descriptor takes", 256, 60, LLAMA_2, bf16, with_moment=True)
    yield tiles("few rows, pointers", 16, 60, LLAMA_2, bf16, **everything)
    yield rows("fp32, 16384", 16384, fp32, False, bias=True, entropy=True)
    yield rows("softcap, 16384", 16384, bf16, False, softcap=30.0, bias=True, entropy=True)
