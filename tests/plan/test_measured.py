"""The plan's bytes against bytes of real tensors: one training step and one sampling on small
models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import srlm_fast.model as models
import srlm_fast.model.decoder as decoder
from srlm_fast.config import Config
from srlm_fast.kernels import logprob_route
from srlm_fast.model import Model, PackedContext, load_model, random_model
from srlm_fast.model.fp8 import quantise_linears
from srlm_fast.plan import memory
from srlm_fast.plan.activations import kept_bytes, layer_bytes
from srlm_fast.plan.mesh import Mesh
from srlm_fast.plan.recipe import Recipe
from srlm_fast.sampler import Sampler, SamplingParams, engine
from srlm_fast.train import DpoConfig
from srlm_fast.train import optimizer as optimizers
from srlm_fast.train.config import OPTIMIZERS
from tests.train.helpers import CONFIG, small_model

SHAPES = {
    "all heads have keys": {"num_heads": 4, "num_kv_heads": 4, "qk_norm": False},
    "grouped heads with norms": {"num_heads": 4, "num_kv_heads": 2, "qk_norm": True},
}
DTYPES = (torch.float32, torch.bfloat16)
TOKENS = 96


def planned(model: Model, chosen: Recipe | None = None) -> memory.Memory:
    config = dataclasses.replace(Config(), dpo=DpoConfig(batch_pairs=1))
    return memory.memory_of(model.config, config, chosen or Recipe(), Mesh(), 1e12, model.dtype)


def tensor_bytes(tree: Any) -> int:
    """Of all tensors of a nest of containers but single numbers."""
    if isinstance(tree, Tensor):
        return tree.nbytes if tree.ndim else 0
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return sum(tensor_bytes(value) for value in values)


def shaped(dtype: torch.dtype, **shape: Any) -> Model:
    config = CONFIG.replace(
        hidden_size=64, intermediate_size=176, num_layers=3, head_dim=16, windows=(), **shape
    )
    return random_model(config, dtype=dtype).train()


def forward(model: Model) -> Tensor:
    context = PackedContext([TOKENS // 2] * 2, model.config.windows)
    return model.logits(model(torch.arange(TOKENS) % CONFIG.vocab_size, context.positions, context))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_gradients_and_optimizer_are_those_of_a_step(dtype: torch.dtype):
    model = small_model(dtype=dtype)
    optimizer = optimizers.Optimizer(model, DpoConfig())
    forward_small = PackedContext([4], model.config.windows)
    model(torch.arange(4), forward_small.positions, forward_small).float().sum().backward()
    model.head.grad = torch.zeros_like(model.head)
    found = planned(model)
    params = list(model.parameters())
    assert found.weights == found.sampling == sum(p.nbytes for p in params)
    assert found.gradients == sum(p.grad.nbytes for p in params if p.grad is not None)
    optimizer.accumulate()
    optimizer.step(1e-3)
    assert found.optimizer == tensor_bytes(optimizer.state())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_every_optimizer_keeps_what_the_trainer_makes(name: str, dtype: torch.dtype):
    """But for the scales of 8-bit moments, which are of whole blocks."""
    model = small_model(dtype=dtype)
    optimizer = optimizers.Optimizer(model, DpoConfig(optimizer=name))
    number = sum(p.numel() for p in model.parameters())
    _, state = Recipe(name).trained_bytes(dtype, summed=False, shard=False)
    assert state * number == pytest.approx(optimizer.nbytes, rel=0.02)


@pytest.mark.parametrize("base", ["model", "fp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_adapter_and_its_base_are_those_of_a_model(base: str, dtype: torch.dtype):
    model = shaped(dtype, **SHAPES["all heads have keys"])
    if base == "fp8":
        quantise_linears(model)
    models.add_lora(model, models.LoraConfig(rank=4))
    found = planned(model, Recipe(lora_rank=4, base_dtype=base))
    assert found.weights == tensor_bytes([p.detach() for p in model.parameters()])
    learned = [p.detach() for p in model.parameters() if p.requires_grad]
    assert found.gradients == tensor_bytes(learned)
    optimizer = optimizers.Optimizer(model, DpoConfig())
    assert found.optimizer == tensor_bytes(optimizer.state())


@pytest.mark.parametrize("dtype", DTYPES)
def test_keys_and_values_are_those_of_the_pool(dtype: torch.dtype):
    model = load_model("tiny", "cpu", dtype)
    sampler = Sampler(model, kv_bytes=1 << 20)
    sampler.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    cache: Any = sampler._cache
    tokens = sampler.num_pages * sampler.page_tokens
    assert cache.keys.nbytes + cache.values.nbytes == tokens * planned(model).kv_token


class Norm(torch.autograd.Function):
    """Keeps what the norm on a GPU keeps: its input, the weight, a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rstd = x.float().square().mean(-1).add(eps).rsqrt()
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd[..., None]).to(x.dtype) * weight


class NormOfSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x + residual
        rstd = total.float().square().mean(-1).add(eps).rsqrt()
        ctx.save_for_backward(total, weight, rstd)
        return (total * rstd[..., None]).to(x.dtype) * weight, total


class Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return q.contiguous().clone(), k.contiguous().clone()


def rope_qkv(
    qkv: Tensor, heads: tuple[int, int, int], cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = qkv.unflatten(1, (sum(heads), -1)).split(heads, dim=1)
    return *Rope.apply(q, k, cos, sin), v


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = q.clone(), q.new_zeros(q.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, lse)
        return out


def attend(self: PackedContext, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return Attention.apply(*(x.contiguous() for x in (q, k, v)))


class Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return gate * up


def saved_bytes(work: Callable[[], Any], model: Model) -> int:
    """Of the different storages that autograd keeps, the weights' own left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = work()
    assert out.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_what_autograd_keeps(
    shape: dict[str, Any], dtype: torch.dtype, dropout: float, monkeypatch: pytest.MonkeyPatch
):
    """With stand-ins that keep what the functions on a GPU keep: those of a CPU may keep more, as
    its dropout does, whose masks are as wide as what they mask.
    """
    functions = {
        "rms_norm": Norm,
        "rms_norm_residual": NormOfSum,
        "rope_qk": Rope,
        "swiglu": Swiglu,
    }
    for name, function in functions.items():
        monkeypatch.setattr(decoder, name, function.apply)
    monkeypatch.setattr(decoder, "rope_qkv", rope_qkv, raising=False)
    monkeypatch.setattr(PackedContext, "attend", attend)
    model = shaped(dtype, **shape)
    model.dropout_p = dropout
    width = dtype.itemsize
    layer = layer_bytes(model.config, width, dropout=dropout > 0)
    found = TOKENS * kept_bytes(model.config, width, layer, checkpointing=False)
    measured = saved_bytes(lambda: forward(model), model)
    assert found == pytest.approx(measured, rel=0.25 if dropout else 0.1)


def test_checkpointed_activations_are_one_row_a_layer():
    model = shaped(torch.float32, **SHAPES["all heads have keys"])
    model.checkpointing = True
    found = TOKENS * kept_bytes(model.config, 4, 0.0, checkpointing=True)
    assert found == pytest.approx(saved_bytes(lambda: forward(model), model), rel=0.25)


def test_budgets_are_those_of_the_sampler_and_the_head():
    assert memory.BLOCK_BYTES == logprob_route.GPU_BLOCK_BYTES
    assert memory.MOST_SEQUENCES == engine.MAX_SEQUENCES
    assert memory.HOST_POOL == engine.DEFAULT_CPU_KV_BYTES
    assert engine.default_kv_bytes(torch.device("cpu")) <= memory.HOST_POOL
