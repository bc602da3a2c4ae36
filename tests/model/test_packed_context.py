"""Segments that go on from a parent see what they would see as whole sequences."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.model import PackedContext
from tests.train.helpers import VOCAB, small_model


@pytest.mark.parametrize("window", [None, 3])
def test_children_equal_whole_sequences(window):
    model = small_model(dtype=torch.float64)
    windows = [window] * model.config.num_layers
    draw = torch.Generator().manual_seed(0)
    prompt, *responses = (torch.randint(VOCAB, (n,), generator=draw) for n in (5, 4, 1, 6))
    tree = PackedContext([5, 4, 1, 6], windows, parents=[-1, 0, 0, 0])
    hidden = model(torch.cat((prompt, *responses)), tree.positions, tree)
    start = 5
    for response in responses:
        whole = PackedContext([5 + len(response)], windows)
        expected = model(torch.cat((prompt, response)), whole.positions, whole)
        found = torch.cat((hidden[:5], hidden[start : start + len(response)]))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        start += len(response)


@pytest.mark.parametrize("parents", [[0, -1], [-1], [-1, 1], [-1, 0, 1], [-2, -1]])
def test_parents_that_are_no_tree_of_depth_one_are_refused(parents):
    with pytest.raises(ValueError, match="parents"):
        PackedContext([2] * max(len(parents), 2), [None], parents=parents)
