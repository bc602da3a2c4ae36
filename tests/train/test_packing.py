"""The packed stream holds what the rows say: every token, every target one step ahead."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from srlm_fast.train.packing import (
    batch_items,
    make_segments,
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
