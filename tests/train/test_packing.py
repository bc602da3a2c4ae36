"""The packed stream holds what the rows say: every token, every target one step ahead."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from srlm_fast.train.packing import (
    batch_items,
    item_tokens,
    make_segments,
    micro_batches,
    num_batches,
    pack,
    split_by_tokens,
)

PROMPTS = [[1, 2], [3], [4, 5, 6]]
RESPONSES = [[7, 8, 9], [10], [11, 12]]


def test_by_hand():
    """Segment 0 is fed 1 2 7 8 and predicts 7 8 9 from 2 7 8; segment 2 is fed 4 5 6 11."""
    segments = make_segments(PROMPTS, RESPONSES, vocab_size=20)
    batch = pack(segments, np.array([2, 0]), per_item=1)
    assert batch.token_ids.tolist() == [4, 5, 6, 11, 1, 2, 7, 8]
    assert batch.lengths == [4, 4]
    assert batch.rows.tolist() == [2, 3, 5, 6, 7]
    assert batch.targets.tolist() == [11, 12, 7, 8, 9]
    assert batch.response_lengths.tolist() == [2, 3]
    assert batch.token_ids.dtype == batch.rows.dtype == batch.targets.dtype == torch.int64


def test_first_response_token_comes_from_the_last_prompt_token_and_the_end_token_counts():
    segments = make_segments(PROMPTS, RESPONSES, vocab_size=20)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        batch = pack(segments, np.array([i]), per_item=1)
        assert batch.token_ids[batch.rows[0]] == prompt[-1]
        assert batch.targets.tolist() == response


def test_items_of_two_segments_stay_together():
    segments = make_segments(PROMPTS[:1] * 4, [[7], [8, 9], [10], [11]], vocab_size=20)
    batch = pack(segments, np.array([1, 0]), per_item=2)
    assert batch.targets.tolist() == [10, 11, 7, 8, 9]
    assert batch.items.tolist() == [1, 0]


def test_a_tree_by_hand():
    """Prompt 1 2 with 7 8 9, 5 9 and 9 behind it, 7 8 9 in two pairs; prompt 3 with 7 alone.

    Fed: 1 2 | 7 8 | 5 | and nothing of 9, then 3. Row 1 predicts 7, 5 and 9.
    """
    prompts = [[1, 2]] * 4 + [[3]] * 2
    responses = [[7, 8, 9], [5, 9], [9], [7, 8, 9], [7], [7]]
    segments = make_segments(prompts, responses, vocab_size=20, share_prompts=True)
    assert item_tokens(segments, 2).tolist() == [2 + 2 + 1, 2 + 0 + 2, 1 + 0]
    batch = pack(segments, np.array([0, 2, 1]), per_item=2)
    assert batch.token_ids.tolist() == [1, 2, 7, 8, 5, 3]
    assert (batch.lengths, batch.parents) == ([2, 2, 1, 1], [-1, 0, 0, -1])
    assert batch.rows.tolist() == [1, 2, 3, 1, 4, 1, 5]
    assert batch.targets.tolist() == [7, 8, 9, 5, 9, 9, 7]
    assert batch.response_lengths.tolist() == [3, 2, 1, 1]
    assert batch.responses.tolist() == [0, 1, 2, 4]
    assert batch.sequences.view(-1, 2).tolist() == [[0, 1], [3, 3], [2, 0]]


def test_without_two_responses_of_a_prompt_there_is_no_tree():
    """What is shared by nobody is laid out as the unshared form lays it out."""
    for prompts, items in ((PROMPTS, [2, 0]), ([[1, 2]] * 3, [1])):
        apart, shared = (
            pack(make_segments(prompts, RESPONSES, 20, share), np.array(items), per_item=1)
            for share in (False, True)
        )
        assert apart.parents is shared.parents is None
        assert apart.lengths == shared.lengths
        for name in ("token_ids", "rows", "targets", "response_lengths", "sequences"):
            assert torch.equal(getattr(apart, name), getattr(shared, name)), name


def test_responses_of_a_single_token_leave_the_prompt_alone():
    segments = make_segments([[1, 2]] * 2, [[7], [8]], 20, share_prompts=True)
    batch = pack(segments, np.array([0]), per_item=2)
    assert (batch.token_ids.tolist(), batch.lengths, batch.parents) == ([1, 2], [2], None)
    assert (batch.rows.tolist(), batch.targets.tolist()) == ([1, 1], [7, 8])


def test_segments_kept_apart_by_a_value_still_share_their_prompt():
    segments = make_segments([[1, 2]] * 3, [[7, 8]] * 3, 20, share_prompts=True)
    batch = pack(segments.apart([0.5, 0.25, 0.5]), np.arange(3), per_item=1)
    assert batch.token_ids.tolist() == [1, 2, 7, 7]
    assert batch.sequences.tolist() == [0, 1, 0]


def test_items_of_one_prompt_meet_as_far_as_the_budget_allows():
    """Prompts of 6 and responses of 3 (2 fed): an item alone is 8, two of a prompt are 10."""
    prompts = [[1] * 6, [2] * 6, [1] * 6, [2] * 6, [1] * 6]
    responses = [[i, i, i] for i in range(3, 8)]
    segments = make_segments(prompts, responses, 20, share_prompts=True)

    def cut(budget):
        batches = micro_batches(segments, np.arange(5), 1, budget)
        assert sorted(np.concatenate([b.items for b in batches]).tolist()) == [0, 1, 2, 3, 4]
        return [(b.items.tolist(), len(b.token_ids)) for b in batches]

    assert cut(100) == [([0, 2, 4, 1, 3], 12 + 10)]
    assert cut(12) == [([0, 2, 4], 12), ([1, 3], 10)]
    assert cut(10) == [([0, 2], 10), ([1, 3], 10), ([4], 8)]
    assert [items for items, _ in cut(1)] == [[0], [1], [2], [3], [4]]
    assert micro_batches(segments, np.arange(0), 1, 10) == []


@pytest.mark.parametrize("token", [-1, 20])
def test_tokens_outside_the_vocabulary_are_refused(token):
    with pytest.raises(ValueError, match=f"token ids: {token}, wanted 0..19"):
        make_segments([[1]], [[token]], vocab_size=20)


def test_groups_hold_everything_once_within_the_budget_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 50, 200)
    groups = split_by_tokens(lengths, 100)
    assert sorted(np.concatenate(groups).tolist()) == list(range(200))
    assert all(lengths[group].sum() <= 100 for group in groups)
    edges = [(lengths[group].max(), lengths[group].min()) for group in groups]
    assert all(left[1] >= right[0] for left, right in pairwise(edges))


def test_groups_are_as_few_as_the_budget_asks_and_of_like_sums():
    lengths = np.array([10, 10, 10, 10, 10, 10, 2, 2])
    assert [lengths[g].sum() for g in split_by_tokens(lengths, 45)] == [30, 34]
    assert [lengths[g].sum() for g in split_by_tokens(lengths, 32)] == [20, 20, 24]
    lengths = np.random.default_rng(1).integers(20, 50, 64)
    sums = [int(lengths[g].sum()) for g in split_by_tokens(lengths, 1000)]
    assert len(sums) == -(-int(lengths.sum()) // 1000) and max(sums) - min(sums) < 50


def test_an_item_over_the_budget_goes_alone():
    assert [g.tolist() for g in split_by_tokens(np.array([3, 500, 3]), 10)] == [[1], [0, 2]]


def test_order_depends_on_seed_and_epoch_alone():
    def epoch(seed, number, batch):
        steps = range(num_batches(10, batch))
        return np.concatenate(
            [batch_items(10, batch, seed, number * len(steps) + i) for i in steps]
        ).tolist()

    assert sorted(epoch(3, 0, 4)) == list(range(10))
    assert epoch(3, 0, 4) == epoch(3, 0, 3) == epoch(3, 0, 10)
    assert epoch(3, 0, 4) != epoch(3, 1, 4) and epoch(3, 0, 4) != epoch(4, 0, 4)
    assert epoch(-1, 0, 4) == epoch(-1, 0, 4)
    assert len(batch_items(10, 4, 3, 2)) == 2
