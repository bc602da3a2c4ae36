"""Attention over pages and the packed decoder, native against the plain torch text."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srlm_fast.model import ModelConfig, PackedContext
from srlm_fast.sampler.packed import PackedDecoder, can_pack
from srlm_fast.sampler.paged import PagedCache, PagedContext, attend_reference, write_reference

from .helpers import CONFIGS, ISAS, isa_level, random_prompts, small_model

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


def plain_pages(cache):
    """One layer's keys [B, G, K, P] and values [B, G, P, V], whatever the cache keeps in pairs."""
    keys, values = cache.keys[0], cache.values[0]
    if cache.in_pairs:
        keys = keys.movedim(-1, -2).flatten(-3, -2)
        values = values.movedim(-1, -2).flatten(-3, -2)
    return keys.clone(), values.clone()


def answers(shape, page_tokens, window, seed=0, dtype=torch.float32):
    """(native, reference) outputs of one step over pages filled at random."""
    heads, kv_heads, width = shape
    config = ModelConfig("llama", 9, heads * width, 8, 1, heads, kv_heads, width, windows=(window,))
    plan, total = mixed_step(page_tokens), 44
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(total, heads, width, generator=draw) * 2
    k, v = (torch.randn(total, kv_heads, width, generator=draw) for _ in range(2))
    cache = PagedCache(config, 23, page_tokens, "cpu", dtype)
    cache.keys.copy_(torch.randn(cache.keys.shape, generator=draw))
    cache.values.copy_(torch.randn(cache.values.shape, generator=draw))
    keys, values = plain_pages(cache)
    native = PagedContext(cache, plan).attend(0, q, k, v)
    arrays = [torch.tensor(a) for a in (plan.slots, plan.row_starts, plan.context_lengths)]
    write_reference(keys, values, k.to(dtype), v.to(dtype), arrays[0])
    table = torch.tensor(plan.block_table)
    wanted = attend_reference(q, keys, values, *arrays[1:], table, width**-0.5, window)
    found_keys, found_values = plain_pages(cache)
    torch.testing.assert_close(found_keys, keys, rtol=0, atol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(found_values, values, rtol=0, atol=0)
    else:  # the rest of a block of 16 is cleared when its first token is written
        slots, width = arrays[0], shape[2]
        places = (slots // page_tokens, slice(None), slots % page_tokens, slice(0, width))
        assert torch.equal(found_values[places], values[places])
    return native, wanted


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("page_tokens", [16, 32, 64])
@pytest.mark.parametrize("window", [None, 1, 5, 16, 40])
def test_native_attention_equals_the_reference(shape, page_tokens, window):
    native, wanted = answers(shape, page_tokens, window)
    torch.testing.assert_close(native, wanted, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "shape", [(4, 2, 32), (8, 1, 64), (5, 1, 32), (34, 2, 64), (6, 3, 20)], ids=str
)
@pytest.mark.parametrize("page_tokens", [16, 32, 64])
@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_level_attends_alike(isa, shape, page_tokens, window, dtype):
    with isa_level(isa):
        native, wanted = answers(shape, page_tokens, window, dtype=dtype)
    if dtype == torch.float32:
        torch.testing.assert_close(native, wanted, atol=2e-6, rtol=1e-5)
    else:  # queries and probabilities are rounded to 8 bits as well
        torch.testing.assert_close(native, wanted, atol=4e-2, rtol=2e-2)
        assert (native - wanted).square().mean().sqrt() < 4e-3


def test_remains_in_a_page_do_not_reach_its_next_sequence():
    config = ModelConfig("llama", 9, 64, 8, 1, 2, 1, 32)
    for isa in ISAS:
        cache = PagedCache(config, 2, 16, "cpu", torch.bfloat16)
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
        q, k, v = torch.randn(3, 2, 32), torch.randn(3, 1, 32), torch.randn(3, 1, 32)
        with isa_level(isa):
            out = PagedContext(cache, plan_of([3], [3], [[1]], 16)).attend(0, q, k, v)
        assert out.isfinite().all()


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


def rms(x):
    return x.float().square().mean().sqrt()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_packed_decoder_of_bfloat16_is_close_to_fp32_on_its_weights(name, isa):
    """And closer than twice what torch's own bfloat16 forward is."""
    model, exact = small_model(name, dtype=torch.bfloat16), small_model(name)
    exact.load_state_dict({k: w.float() for k, w in model.state_dict().items()})
    config, lengths = model.config, [37, 1, 20]
    assert can_pack(model)
    cache = PagedCache(config, 8, 16, "cpu", torch.bfloat16)
    prompts = random_prompts(model, lengths)
    plan = plan_of(lengths, lengths, [[4, 1, 2], [3], [5, 0]], 16)
    plan.token_ids = np.concatenate(prompts)
    plan.positions = np.concatenate([np.arange(n) for n in lengths])
    with isa_level(isa):
        decoder = PackedDecoder(model, cache)
        hidden = decoder.forward(plan, PagedContext(cache, plan))
        logits = decoder.logits(hidden, np.arange(58))
    assert hidden.dtype == torch.bfloat16
    ids, positions = torch.tensor(plan.token_ids), torch.tensor(plan.positions)
    with torch.no_grad():
        context = PackedContext(lengths, config.windows)
        wanted = exact(ids, positions, context) @ exact.head.T
        theirs = model(ids, positions, context) @ model.head.T
    assert rms(logits - wanted) <= 2 * rms(theirs - wanted) + 1e-3
    assert rms(logits - wanted) <= 0.05 * rms(wanted)
    torch.testing.assert_close(logits, hidden.float() @ exact.head.T, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_packed_decoder_is_the_model(name, isa):
    with isa_level(isa):
        check_packed_decoder(name)


def check_packed_decoder(name):
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
