"""The decoder on Triton's kernels: what it hands them, what it makes of what they return."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.model import PackedContext
from srlm_fast.model.config import ModelConfig
from srlm_fast.model.decoder import random_model
from tests.kernels.three_way import assert_no_worse

SHAPE = {
    "vocab_size": 11,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 12,
}


def run(config, device, dtype):
    """Hidden rows of two segments and the gradients of all weights."""
    model = random_model(config, device=device, dtype=torch.float32).to(dtype)
    context = PackedContext([3, 2], config.windows, device)
    tokens = torch.tensor([3, 1, 4, 1, 5], device=device)
    hidden = model(tokens, context.positions, context)
    weights = torch.linspace(-1, 1, hidden.numel(), device=device, dtype=dtype)
    (hidden * weights.view_as(hidden)).sum().backward()
    return {"hidden": hidden.detach()} | {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("qk_norm", [False, True], ids=["llama", "qwen3"])
def test_the_decoder_on_kernels_is_the_decoder(kernel_device, qk_norm):
    config = ModelConfig("qwen3" if qk_norm else "llama", **SHAPE, qk_norm=qk_norm)
    found = run(config, kernel_device, torch.float32)
    truth = run(config, kernel_device, torch.float64)  # fp64 runs in PyTorch everywhere
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert_no_worse(found[name], value, value, 1e-4 * float(value.abs().max()), name)
