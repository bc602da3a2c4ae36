"""Which rows each rank holds, and the way back; no process is started."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.dist.split import Columns, Rows, Split, gate_and_up, query_key_value, vocabulary

HEADS = [(4, 4, 1), (4, 2, 2), (8, 2, 4), (8, 1, 8), (6, 2, 2), (6, 1, 3)]  # H, G, ranks


def splits() -> list[tuple[str, Split, int, int]]:
    """Name, split, rows of the whole, ranks."""
    found: list[tuple[str, Split, int, int]] = [
        (f"heads {h}, {g} on {r}", query_key_value((h, g), 3, r), (h + 2 * g) * 3, r)
        for h, g, r in HEADS
    ]
    found += [(f"vocabulary {v} on {r}", vocabulary(v, r), v, r) for v, r in ((7, 2), (11, 4))]
    found += [("gate and up", gate_and_up(6, 3), 12, 3)]
    return found


@pytest.mark.parametrize(
    "split, count, ranks", [s[1:] for s in splits()], ids=[s[0] for s in splits()]
)
def test_the_whole_comes_back(split: Rows, count: int, ranks: int):
    whole = torch.randn(count, 5)
    parts = [split.part(whole, rank) for rank in range(ranks)]
    assert torch.equal(split.whole(torch.cat(parts)), whole)
    assert {len(part) for part in parts[:-1]} <= {len(parts[0])}


@pytest.mark.parametrize(
    "split, count, ranks", [s[1:] for s in splits()], ids=[s[0] for s in splits()]
)
def test_loading_piece_by_piece_fills_what_a_rank_holds(split: Rows, count: int, ranks: int):
    whole = torch.randn(count, 5)
    for rank in range(ranks):
        wanted = split.part(whole, rank)
        part = torch.full_like(wanted, torch.nan)
        for start in range(0, count, 4):
            split.load(part, rank, start, whole[start : start + 4])
        assert torch.equal(part, wanted)


def test_columns_come_back_and_load():
    split, whole = Columns(3), torch.randn(4, 6)
    parts = [split.part(whole, rank) for rank in range(3)]
    assert torch.equal(torch.cat(parts, 1), whole)
    loaded = torch.full_like(parts[1], torch.nan)
    for start in (0, 2):
        split.load(loaded, 1, start, whole[start : start + 2])
    assert torch.equal(loaded, parts[1])


@pytest.mark.parametrize("heads, keys, ranks", HEADS)
def test_a_query_head_stands_with_the_head_it_looks_at(heads: int, keys: int, ranks: int):
    split = query_key_value((heads, keys), 1, ranks)
    own, own_keys = heads // ranks, max(1, keys // ranks)
    for rows in split.of_rank:
        q, k, v = rows.split((own, own_keys, own_keys))
        assert (v == k + keys).all()
        seen = heads + q // (heads // keys)  # the row of its key head in the whole
        assert torch.equal(k.repeat_interleave(own // own_keys), seen)
    assert split.has_copies == (keys < ranks)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: query_key_value((5, 5), 8, 2),
            "num_attention_heads: 5, wanted a multiple of 2 ranks",
        ),
        (
            lambda: query_key_value((6, 3), 8, 2),
            "num_key_value_heads: 3, wanted a multiple or a divisor of 2 ranks",
        ),
        (lambda: gate_and_up(10, 4), "intermediate_size: 10, wanted a multiple of 4 ranks"),
        (lambda: vocabulary(5, 4), "vocab_size: 5, wanted tokens for each of 4 ranks"),
    ],
)
def test_sizes_that_do_not_divide_are_named(call, message: str):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
