"""write_kv and paged_attention: kernels against fp64 truth and eager PyTorch; the same bits however
a row is computed; nothing read or written that is not the sequence's own; refusals.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from srlm_fast.kernels.attention_work import Capacity, DecodeConfig, PagedWork
from srlm_fast.kernels.kv_pages import FP8, write_kv, write_kv_reference
from srlm_fast.kernels.paged_attention import paged_attention, paged_attention_reference
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded, surrounded
from tests.kernels.three_way import assert_no_worse

module = sys.modules[paged_attention.__module__]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of the largest true value: for where eager happens to be exact.
FLOOR = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SPLIT = 128  # several splits without long contexts


@dataclass
class Step:
    """Pages and the rows of one step. Everything that no sequence owns is NaN."""

    heads: tuple[int, int, int]
    page: int
    rows: np.ndarray
    lengths: np.ndarray
    table: np.ndarray
    q: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    @property
    def starts(self):
        return np.concatenate(([0], np.cumsum(self.rows))).astype(np.int32)

    def work(self, **options):
        options.setdefault("config", DecodeConfig(split=SPLIT))
        names = ("num_heads", "num_kv_heads", "head_dim")
        sizes = dict(zip(names, self.heads, strict=True))
        place = {"dtype": self.q.dtype, "device": self.q.device}
        return PagedWork(**sizes, page_tokens=self.page, **place, **options)

    def planned(self, **options):
        work = self.work(**options)
        work.plan(self.starts, self.lengths, self.table)
        return work

    def run(self, window=None, scale=None, **options):
        names = "k_scale", "v_scale", "backend"
        given = {name: options.pop(name) for name in names if name in options}
        work, scale = self.planned(**options), scale or self.heads[2] ** -0.5
        return paged_attention(self.q, self.keys, self.values, work, scale, window, **given)

    def reference(self, window=None, scale=None, dtype=None, **scales):
        arrays = (torch.tensor(a) for a in (self.starts, self.lengths, self.table))
        q, keys, values = (
            x if x.dtype == FP8 or not dtype else x.to(dtype)
            for x in (self.q, self.keys, self.values)
        )
        q = q.to(dtype or q.dtype)
        scale = scale or self.heads[2] ** -0.5
        return paged_attention_reference(q, keys, values, *arrays, scale, window, **scales)

    def only(self, rows, length, first, sequence):
        """Rows `first` and on of the stream alone, with a context of `length` of a sequence."""
        return replace(
            self,
            rows=np.array([rows]),
            lengths=np.array([length], np.int32),
            table=self.table[sequence : sequence + 1],
            q=self.q[first : first + rows],
        )


# Sequences of `lengths`, of which `rows` are in the step.
def make(
    lengths,
    rows=None,
    heads=(4, 2, 32),
    page=64,
    dtype=torch.float32,
    device="cpu",
    size=1.0,
    seed=0,
):
    generator = torch.Generator().manual_seed(seed)
    rows = np.ones(len(lengths), np.int64) if rows is None else np.array(rows)
    lengths = np.array(lengths, np.int32)
    num_heads, num_kv_heads, width = heads
    counts = -(-lengths // page)
    count = int(counts.sum()) + 2
    order = torch.randperm(count, generator=generator).int().numpy()
    table = np.full((len(lengths), max(counts, default=0)), count - 1, np.int32)
    table[np.arange(table.shape[1]) < counts[:, None]] = order[: counts.sum()]
    pages = torch.full((2, count, num_kv_heads, page, width), torch.nan)
    for s, length in enumerate(lengths):
        for number in range(counts[s]):
            tokens = min(length - number * page, page)
            new = torch.randn(2, num_kv_heads, tokens, width, generator=generator)
            new[0] *= size
            pages[:, table[s, number], :, :tokens] = new
    q = torch.randn(int(rows.sum()), num_heads, width, generator=generator)
    keys, values = pages.to(device, dtype)
    return Step(heads, page, rows, lengths, table, q.to(device, dtype), keys, values)


def assert_three_ways(step, window=None, **options):
    scales = {k: options[k] for k in ("k_scale", "v_scale") if k in options}
    truth = step.reference(window, dtype=torch.float64, **scales)
    eager = step.reference(window, **scales)
    with guarded():
        guarded_step = replace(step, q=surrounded(step.q))
        found = guarded_step.run(window, **options)
    assert found.dtype == step.q.dtype and found.shape == truth.shape
    floor = FLOOR[step.q.dtype] * float(truth.abs().max().nan_to_num())
    assert_no_worse(found, eager, truth, floor, "out")


MIXED = {"lengths": [1, 64, 200, 131, 70], "rows": [1, 1, 1, 5, 70], "heads": (4, 1, 32)}


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_three_way(kernel_device, dtype, deterministic):
    step = make(**MIXED, dtype=dtype, device=kernel_device)
    assert_three_ways(step, deterministic=deterministic)


@pytest.mark.parametrize("window", [1, 64, 100, 1000])
def test_window(kernel_device, window):
    step = make([1, 270, 132], [1, 1, 7], (4, 1, 32), device=kernel_device)
    for deterministic in (False, True):
        assert_three_ways(step, window, deterministic=deterministic)


HEADS = [(8, 1, 64), (7, 1, 48), (14, 2, 64), (3, 3, 80), (24, 1, 16), (2, 1, 20), (2, 1, 256)]


@pytest.mark.parametrize("heads", HEADS, ids=lambda h: "x".join(map(str, h)))
def test_heads(kernel_device, heads):
    step = make([140, 40], [1, 5], heads, device=kernel_device)
    for deterministic in (False, True):
        assert_three_ways(step, deterministic=deterministic)


@pytest.mark.parametrize("page", [16, 32, 48, 128, 256])
def test_pages(kernel_device, page):
    step = make([200, 90], [1, 20], (4, 1, 32), page, device=kernel_device, dtype=torch.bfloat16)
    for deterministic in (False, True):
        assert_three_ways(step, deterministic=deterministic)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("size", [0.0, 30.0, 1000.0])
def test_equal_and_peaked_scores(kernel_device, size, dtype):
    step = make([140, 140], [1, 5], (4, 1, 32), 64, dtype, kernel_device, size)
    assert_three_ways(step)


def parts_of(step, sequence, **options):
    """Each row of a sequence decoded alone, from its own length."""
    first, rows = int(step.starts[sequence]), int(step.rows[sequence])
    last = int(step.lengths[sequence])
    for row in range(rows):
        yield first + row, step.only(1, last - rows + row + 1, first + row, sequence).run(**options)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_has_the_same_bits_decoded_and_in_a_chunk(kernel_device, dtype, window):
    """Rows of one, of two splits, and of three."""
    step = make([130, 258], [4, 5], (7, 1, 64), dtype=dtype, device=kernel_device)
    whole = step.run(window, deterministic=True)
    for sequence in (0, 1):
        for row, alone in parts_of(step, sequence, window=window):
            assert torch.equal(whole[row], alone[0]), (sequence, row)
    cut = step.only(3, 258 - 2, 4, 1).run(window, deterministic=True)
    assert torch.equal(cut, whole[4:7])


def test_a_row_has_the_same_bits_in_any_batch(kernel_device):
    heads = (4, 1, 32)
    step = make([200, 1, 140, 300], heads=heads, device=kernel_device, dtype=torch.bfloat16)
    whole = step.run()
    for sequence, length in enumerate(step.lengths):
        assert torch.equal(whole[sequence], step.only(1, length, sequence, sequence).run()[0])
    order = np.array([2, 0, 3, 1])
    shuffled = replace(step, lengths=step.lengths[order], table=step.table[order], q=step.q[order])
    assert torch.equal(shuffled.run(), whole[order])


def test_extending_is_the_same_bits_in_any_batch_also_in_the_fast_form(kernel_device):
    step = make([100, 150], [30, 40], device=kernel_device, dtype=torch.bfloat16)
    assert torch.equal(step.run()[30:], step.only(40, 150, 30, 1).run())


@pytest.mark.parametrize("programs", [0, 1, 3])
def test_grid_does_not_matter(kernel_device, programs):
    step = make([300, 140, 1], heads=(4, 1, 32), device=kernel_device)
    config = DecodeConfig(split=SPLIT, programs=programs)
    assert torch.equal(step.run(config=config), step.run())


def test_a_capacity_serves_steps_of_any_lengths(kernel_device):
    """One object, its arrays in place, as a captured graph sees them."""
    heads, capacity = (4, 1, 32), Capacity(sequences=4, pages=5, splits=8)
    work = make([1], heads=heads, device=kernel_device).work(capacity=capacity)
    places = set()
    for lengths in ([300, 64, 129], [], [257, 64, 1, 200]):
        step = make(lengths, heads=heads, device=kernel_device)
        work.plan(step.starts, step.lengths, step.table)
        q = torch.full((4, *step.q.shape[1:]), torch.nan, device=kernel_device)
        q[: len(lengths)] = step.q
        with guarded():
            out = paged_attention(q, step.keys, step.values, work, 0.1)
        assert torch.equal(out[: len(lengths)], step.run(scale=0.1))
        assert (out[len(lengths) :] == 0).all()
        arrays = (work.items, work.table, work.lengths, *work.parts())
        places.add(tuple(array.data_ptr() for array in arrays))
    assert len(places) == 1


@pytest.mark.gpu
def test_a_captured_graph_serves_steps_of_any_lengths():
    heads = (8, 2, 128)
    work = make([1], heads=heads, device="cuda").work(capacity=Capacity(4, 8, 16))
    pages = torch.zeros(2, 40, 2, 64, 128, device="cuda")
    q, out = torch.zeros(2, 4, 8, 128, device="cuda")
    work.plan(np.array([0, 1]), np.array([1]), np.array([[0]]))
    paged_attention(q, *pages, work, 0.1, out=out)  # compiled before it is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        paged_attention(q, *pages, work, 0.1, out=out)
    for lengths in ([300, 64, 129], [], [512, 512, 300, 64], [1]):
        step = make(lengths, heads=heads, device="cuda")
        pages[0, : len(step.keys)], pages[1, : len(step.keys)] = step.keys, step.values
        q[: len(lengths)] = step.q
        work.plan(step.starts, step.lengths, step.table)
        graph.replay()
        assert torch.equal(out[: len(lengths)], step.run(scale=0.1))
        assert (out[len(lengths) :] == 0).all()


def test_rows_of_no_sequence_and_empty_contexts_are_zero(kernel_device):
    step = make([70, 90], [1, 4], device=kernel_device)
    lengths, rows = np.array([70, 0, 90], np.int32), np.array([1, 0, 4])
    table = step.table[[0, 0, 1]]
    q = torch.cat((step.q, torch.full_like(step.q[:3], torch.nan)))
    longer = replace(step, lengths=lengths, rows=rows, table=table, q=q)
    with guarded():
        out = longer.run()
    assert torch.equal(out[:5], step.run()) and (out[5:] == 0).all()


def test_nothing_to_do(kernel_device):
    step = make([64], device=kernel_device)
    none = replace(step, lengths=step.lengths[:0], rows=step.rows[:0], table=step.table[:0])
    assert (none.run() == 0).all()
    assert replace(none, q=step.q[:0]).run().shape == (0, 4, 32)


def test_strides_of_q_and_out(kernel_device):
    step = make([150, 20], [1, 5], device=kernel_device)
    qkv = torch.full((6, 8, 32), torch.nan, device=kernel_device)
    qkv[:, 2:6] = step.q
    work, out = step.planned(), torch.full_like(step.q, torch.nan)
    for q in (qkv[:, 2:6], step.q.transpose(0, 2).contiguous().transpose(0, 2)):
        found = paged_attention(q, step.keys, step.values, work, 32**-0.5, out=out)
        assert found is out and torch.equal(out, step.run())


def test_items_that_share_pages_are_neighbours():
    step = make([300, 300, 300, 300])
    table = step.table[[0, 1, 0, 1]]
    work = replace(step, table=table).planned()
    read = [tuple(table[s, p * 2 : p * 2 + 2]) for s, p in work.items.tolist()]
    assert all(read[i] == read[i + 1] for i in range(0, 12, 2)) and len(set(read)) == 6


# Writing


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("page", [16, 64])
def test_write(kernel_device, page, dtype, index):
    """k and v are views of a projection; padding is written nowhere."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(7, 9, 40, generator=generator).to(kernel_device, dtype)
    k, v = qkv[:, 3:6], qkv[:, 6:]
    slots = torch.tensor([5, -1, 3 * page, page - 1, -7, 4 * page - 1, page], dtype=index)
    slots, margin = slots.to(kernel_device), 64
    found = torch.full((2, margin + 4 * 3 * page * 40 + margin), 57.0).to(kernel_device, dtype)
    right = found.clone()
    for buffers, write in ((found, write_kv), (right, write_kv_reference)):
        write(k, v, slots, *(b[margin:-margin].view(4, 3, page, 40) for b in buffers))
    assert torch.equal(found, right) and (found != 57).sum() == 2 * 5 * 3 * 40


def test_write_nothing(kernel_device):
    pages = torch.zeros(2, 4, 2, 16, 8, device=kernel_device)
    none = torch.zeros(0, 2, 8, device=kernel_device)
    write_kv(none, none, torch.zeros(0, dtype=torch.int32, device=kernel_device), *pages)
    assert (pages == 0).all()


def test_write_then_attend_by_hand(kernel_device):
    """Equal keys: the mean of the values; a window of 2: of the last two."""
    pages = torch.full((2, 2, 1, 16, 16), torch.nan, device=kernel_device)
    k, v = torch.ones(3, 1, 16, device=kernel_device), torch.arange(3.0).repeat_interleave(16)
    v = v.view(3, 1, 16).to(kernel_device)
    write_kv(k, v, torch.tensor([16, 17, 18], device=kernel_device), *pages)
    sizes = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 16, "page_tokens": 16}
    work = PagedWork(**sizes, dtype=torch.float32, device=kernel_device)
    work.plan(np.array([0, 3]), np.array([3]), np.array([[1]]))
    for window, right in ((None, [0, 0.5, 1]), (2, [0, 0.5, 1.5])):
        out = paged_attention(k, *pages, work, 1.0, window)
        assert torch.allclose(out[:, 0, 0].cpu(), torch.tensor(right))


# Refusals


def test_refuses(kernel_device):
    step = make([70, 90], [1, 4], device=kernel_device)
    work, q, keys, values = step.planned(), step.q, step.keys, step.values
    good = {"q": q, "keys": keys, "values": values, "work": work, "scale": 1.0}
    bad = {
        "q: ": [q[:, :3], q[:4], q.int(), q[0]],
        "keys: ": [keys[:, :1], keys.bfloat16(), keys.mT.contiguous()],
        "values: ": [values[:1], values.half(), values.to("meta")],
        "scale: ": [0.0, -1.0, float("nan"), torch.ones(1)],
        "window: ": [0, -1, 1.5],
        "out: ": [q[1:], q.double(), q.mT.contiguous().mT],
        "k_scale: ": [2.0, torch.ones(1, device=kernel_device)],
    }
    for argument, values_refused in bad.items():
        for value in values_refused:
            with pytest.raises(ValueError, match=f"^{argument}"):
                paged_attention(**good | {argument[:-2]: value})
    with dtensors() as distributed, pytest.raises(ValueError, match="^q: a DTensor"):
        paged_attention(**good | {"q": distributed(q.cpu())})


def test_write_refuses():
    k, pages = torch.zeros(3, 2, 8), torch.zeros(4, 2, 16, 8)
    slots = torch.zeros(3, dtype=torch.int64)
    for argument, arguments in {
        "v: ": (k, k[:2], slots, pages, pages),
        "slots: ": (k, k, slots.float(), pages, pages),
        "keys: ": (k, k, slots, pages[:, :1], pages),
        "values: ": (k, k, slots, pages, pages[1:]),
        "keys: pages of 8": (k, k, slots, pages[:, :, :8].contiguous(), pages[:, :, :8]),
    }.items():
        with pytest.raises(ValueError, match=f"^{argument}"):
            write_kv(*arguments)


def test_plan_refuses():
    step = make([70, 90], [1, 4])
    good = [step.starts, step.lengths, step.table]
    for place, value, argument in (
        (0, step.starts[:2], "row_starts: "),
        (0, step.starts + 1, "row_starts: "),
        (0, np.array([0, 5, 4]), "row_starts: "),
        (1, np.array([0, 90]), "context_lengths: "),
        (2, step.table[:, :1], "block_table: "),
        (2, step.table[:1], "block_table: "),
    ):
        with pytest.raises(ValueError, match=f"^{argument}"):
            step.work().plan(*(value if i == place else a for i, a in enumerate(good)))
    with pytest.raises(ValueError, match="row_starts: "):
        step.work(capacity=Capacity(2, 2, 9)).plan(*good)
    with pytest.raises(ValueError, match="a step of 6 splits"):
        make([70, 90, 500]).planned(capacity=Capacity(3, 9, 5))


# Pages in fp8


@pytest.mark.parametrize("as_tensors", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_fp8(kernel_device, dtype, as_tensors):
    """Written and read again: exactly what the reference writes and reads."""
    scales = {"k_scale": 0.5, "v_scale": 0.0625}
    if as_tensors:
        scales = {name: torch.tensor(s, device=kernel_device) for name, s in scales.items()}
    step = make([140, 40], [1, 5], (4, 1, 32), 64, dtype, kernel_device, size=3.0)
    step = replace(step, values=step.values * 4)
    pages = [torch.zeros(x.shape, device=kernel_device).to(FP8) for x in (step.keys,) * 4]
    k, v = (x.transpose(1, 2).flatten(0, 1) for x in (step.keys, step.values))
    slots = torch.where(k.isnan().any(2).any(1), -1, torch.arange(len(k), device=kernel_device))
    write_kv(k, v, slots, *pages[:2], **scales)
    write_kv_reference(k, v, slots, *pages[2:], **scales)
    for found, right in zip(pages[:2], pages[2:], strict=True):
        assert torch.equal(found.view(torch.uint8), right.view(torch.uint8))
    for deterministic in (False, True):
        eight = replace(step, keys=pages[2], values=pages[3])
        assert_three_ways(eight, deterministic=deterministic, **scales)


# flash-attn


def paged_sdpa(q, keys, values, starts, lengths, options):
    """The specification under flash-attn's arguments; pages are [B, P, G, K]."""
    assert options.pop("causal") and keys.stride(3) == 1
    window = options.pop("window_size")
    table, scale = options.pop("block_table"), options.pop("softmax_scale")
    assert not options and (window == (-1, -1) or window[1] == 0)
    pages = (x.transpose(1, 2) for x in (keys, values))
    window = None if window[0] < 0 else window[0] + 1
    return paged_attention_reference(q, *pages, starts, lengths, table, scale, window)


def fake_varlen(q, k, v, starts, key_starts, longest_rows, longest, **options):
    assert longest_rows == starts.diff().max() and longest == key_starts.diff().max()
    return paged_sdpa(q, k, v, starts, key_starts.diff(), options)


def fake_kvcache(q, k, v, cache_seqlens, **options):
    starts = torch.arange(len(q) + 1)
    return paged_sdpa(q[:, 0], k, v, starts, cache_seqlens, options)[:, None]


@pytest.mark.parametrize("rows", [[1, 1], [1, 5]], ids=["decode", "extend"])
def test_flash_attn_is_called_right(monkeypatch, rows):
    step = make([300, 40], rows, page=256, dtype=torch.bfloat16)
    step = replace(step, q=torch.cat((step.q, step.q[:2])))
    monkeypatch.setattr(module, "flash_attn", lambda: None)
    with pytest.raises(ValueError, match="^backend: 'flash', wanted"):
        step.run(backend="flash")
    fake = SimpleNamespace(flash_attn_varlen_func=fake_varlen, flash_attn_with_kvcache=fake_kvcache)
    monkeypatch.setattr(module, "flash_attn", lambda: fake)
    for window in (None, 100):
        found = step.run(window, backend="flash")
        assert torch.equal(found, step.reference(window))
    with pytest.raises(ValueError, match="^backend: 'x'"):
        step.run(backend="x")
    with pytest.raises(ValueError, match="^keys: pages of 64 tokens"):
        make([5], dtype=torch.bfloat16).run(backend="flash")


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [[1, 1], [1, 5]], ids=["decode", "extend"])
def test_flash_attn(rows):
    if module.flash_attn() is None:
        pytest.skip("flash-attn cannot be imported")
    step = make([300, 40], rows, (8, 2, 64), 256, torch.bfloat16, "cuda")
    for window in (None, 100):
        assert_three_ways(step, window, backend="flash")
