"""Blocks that are run again in the backward pass: the same bits, and less that is kept."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.model import PackedContext
from tests.train.helpers import VOCAB, small_model


def run(dtype, checkpointing, dropout, parents=None):
    """(hidden rows, gradients, bytes that the forward keeps for the backward) of a packed text."""
    model = small_model(dtype=dtype)
    model.train()
    model.dropout_p, model.checkpointing = dropout, checkpointing
    lengths = [9, 4, 6]
    ids = torch.arange(sum(lengths)) * 7 % VOCAB
    context = PackedContext(lengths, model.config.windows, parents=parents)
    weights = {id(weight.untyped_storage()) for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        if id(tensor.untyped_storage()) not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(ids, context.positions, context)
    (hidden.float() * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return (
        hidden,
        {n: p.grad for n, p in model.layers.named_parameters()}
        | {"embed": model.embed.weight.grad},
        sum(kept.values()),
    )


@pytest.mark.parametrize("parents", [None, [-1, 0, 0]], ids=["flat", "tree"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_same_bits(dtype, dropout, parents):
    wanted, ours = (run(dtype, again, dropout, parents) for again in (False, True))
    assert torch.equal(ours[0], wanted[0])
    assert wanted[1].keys() == ours[1].keys()
    assert [name for name in ours[1] if not torch.equal(ours[1][name], wanted[1][name])] == []
    assert ours[2] < wanted[2] / 3


def test_dropout_is_there_at_all():
    assert not torch.equal(run(torch.float32, True, 0.0)[0], run(torch.float32, True, 0.3)[0])


def test_nothing_is_run_again_outside_of_training(monkeypatch):
    model, calls = small_model(), []
    model.checkpointing = True
    context = PackedContext([4], model.config.windows)
    attend = context.attend
    monkeypatch.setattr(context, "attend", lambda *given: calls.append(1) or attend(*given))
    with torch.no_grad():
        model(torch.arange(4), context.positions, context)
    assert len(calls) == model.config.num_layers
    model(torch.arange(4), context.positions, context).sum().backward()
    assert len(calls) == 3 * model.config.num_layers
