"""Attention over pages and the packed decoder, native against the plain torch text."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srlm_fast.model import ModelConfig, PackedContext
from srlm_fast.sampler.packed import PackedDecoder, can_pack
from srlm_fast.sampler.paged import PagedCache, PagedContext, attend_reference, write_reference

from .helpers import CONFIGS, random_prompts, small_model

# (heads, kv heads, head width): GQA ratios 1 to 8, widths that are no multiple of 8 or 16
SHAPES = [(4, 4, 32), (4, 2, 32), (8, 1, 64), (7, 7, 6), (6, 3, 20), (14, 2, 10)]


def plan_of(rows, lengths, tables, page_tokens):
    """A step in which sequence s brings its last rows[s] of lengths[s] tokens."""
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
    slots = [
        table[p // page_tokens] * page_tokens + p % page_tokens
        for n, length, table in zip(rows, lengths, tables, strict=True)
        for p in range(length - n, length)
    ]
    width = max(map(len, tables))
    return SimpleNamespace(
        slots=np.array(slots, np.int64),
        row_starts=starts,
        context_lengths=np.array(lengths, np.int32),
        block_table=np.array([t + [0] * (width - len(t)) for t in tables], np.int32),
    )


def mixed_step(page_tokens):
    """Siblings on shared pages, a chunk of a prompt, a first token, and a lone long sample."""
    size = page_tokens
    rows = [1, 1, 1, 9, 1, 1, 30]
    lengths = [2 * size + 3, 2 * size + 7, 3 * size + 1, 2 * size + 5, 1, 5 * size, 30]
    tables = [[3, 1, 8], [3, 1, 9], [3, 1, 2, 10], [11, 0, 12], [13], [20, 18, 19, 4, 5]]
    return plan_of(rows, lengths, [*tables, [6, 7, 21, 22][: -(-30 // size)]], size)


def answers(shape, page_tokens, window, seed=0):
    """(native, reference) outputs of one step over pages filled at random."""
    heads, kv_heads, width = shape
    config = ModelConfig("llama", 9, heads * width, 8, 1, heads, kv_heads, width, windows=(window,))
    plan, total = mixed_step(page_tokens), 44
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(total, heads, width, generator=draw) * 2
    k, v = (torch.randn(total, kv_heads, width, generator=draw) for _ in range(2))
    cache = PagedCache(config, 23, page_tokens, "cpu", torch.float32)
    cache.keys.copy_(torch.randn(cache.keys.shape, generator=draw))
    cache.values.copy_(torch.randn(cache.values.shape, generator=draw))
    keys, values = cache.keys[0].clone(), cache.values[0].clone()
    native = PagedContext(cache, plan).attend(0, q, k, v)
    arrays = [torch.tensor(a) for a in (plan.slots, plan.row_starts, plan.context_lengths)]
    write_reference(keys, values, k, v, arrays[0])
    table = torch.tensor(plan.block_table)
    wanted = attend_reference(q, keys, values, *arrays[1:], table, width**-0.5, window)
    torch.testing.assert_close(cache.keys[0], keys, rtol=0, atol=0)
    torch.testing.assert_close(cache.values[0], values, rtol=0, atol=0)
    return native, wanted


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("page_tokens", [16, 32, 64])
@pytest.mark.parametrize("window", [None, 1, 5, 16, 40])
def test_native_attention_equals_the_reference(shape, page_tokens, window):
    native, wanted = answers(shape, page_tokens, window)
    torch.testing.assert_close(native, wanted, atol=2e-6, rtol=1e-5)


def test_contexts_beyond_the_switch_to_narrow_groups():
    config = ModelConfig("llama", 9, 32, 8, 1, 2, 2, 16)
    cache = PagedCache(config, 140, 64, "cpu", torch.float32)
    draw = torch.Generator().manual_seed(1)
    cache.keys.copy_(torch.randn(cache.keys.shape, generator=draw))
    cache.values.copy_(torch.randn(cache.values.shape, generator=draw))
    shared = list(range(70))
    plan = plan_of([1] * 9, [4484] * 9, [[*shared, 70 + i] for i in range(9)], 64)
    q = torch.randn(9, 2, 16, generator=draw)
    k, v = (torch.randn(9, 2, 16, generator=draw) for _ in range(2))
    native = PagedContext(cache, plan).attend(0, q, k, v)
    arrays = (plan.row_starts, plan.context_lengths, plan.block_table)
    tensors = [torch.tensor(a) for a in arrays]
    wanted = attend_reference(q, cache.keys[0], cache.values[0], *tensors, 0.25, None)
    torch.testing.assert_close(native, wanted, atol=2e-6, rtol=1e-5)


def test_copied_pages_are_read_before_they_are_written():
    cache = PagedCache(CONFIGS["llama"], 4, 16, "cpu", torch.float32)
    cache.keys.copy_(torch.arange(4.0).view(1, 4, 1, 1, 1).expand_as(cache.keys))
    cache.copy_pages(torch.tensor([[0, 1], [1, 2]]))
    assert cache.keys[0, :, 0, 0, 0].tolist() == [0, 0, 1, 3]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_packed_decoder_is_the_model(name):
    model = small_model(name)
    config, lengths = model.config, [37, 1, 20]
    assert can_pack(model)
    cache = PagedCache(config, 8, 16, "cpu", torch.float32)
    prompts = random_prompts(model, lengths)
    plan = plan_of(lengths, lengths, [[4, 1, 2], [3], [5, 0]], 16)
    plan.token_ids = np.concatenate(prompts)
    plan.positions = np.concatenate([np.arange(n) for n in lengths])
    decoder = PackedDecoder(model, cache)
    hidden = decoder.forward(plan, PagedContext(cache, plan))
    context = PackedContext(lengths, config.windows)
    with torch.no_grad():
        wanted = model(torch.tensor(plan.token_ids), torch.tensor(plan.positions), context)
    torch.testing.assert_close(hidden, wanted, atol=2e-5, rtol=2e-5)
    rows = np.array([36, 57, 0])
    logits = decoder.logits(hidden, rows)
    torch.testing.assert_close(logits, hidden[rows] @ model.head.T, atol=2e-5, rtol=2e-5)


def test_changed_modules_are_not_packed():
    model = small_model()

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model.layers[1].o = Adapted(48, 48)
    assert not can_pack(model)
