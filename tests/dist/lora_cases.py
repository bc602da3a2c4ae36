"""What the ranks of a test do with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srlm_fast.dist import device_mesh, shard, tensor_parallel
from srlm_fast.model import (
    Adapter,
    LoraConfig,
    Model,
    add_lora,
    load_model,
    random_model,
)
from srlm_fast.model.load import BASE_DTYPES
from srlm_fast.model.lora import lora_parameters
from srlm_fast.model.quantised import quantise_linears as quantise_into
from srlm_fast.sampler import Sampler

from . import cases

# (model, adapted parts)
ADAPTED = {
    "llama": LoraConfig(3, 6.0),
    "biases": LoraConfig(2, 5.0, targets=("q_proj", "v_proj", "up_proj", "down_proj")),
    "qwen3": LoraConfig(4, 4.0, targets=("k_proj", "o_proj", "gate_proj")),
}


def adapted(name: str, dtype: torch.dtype = torch.float32) -> Model:
    """With both factors away from zero."""
    model = random_model(cases.EVERY[name], seed=1, std=0.25, dtype=dtype)
    model.source = "somewhere"
    return filled(add_lora(model, ADAPTED[name], seed=3))


def filled(model: Model) -> Model:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, factor in lora_parameters(model):
            if name.endswith(".B"):
                factor.copy_(torch.randn(factor.shape, generator=generator) * 0.2)
    return model


def split_lora(name: str, folder: str) -> dict[str, Any]:
    """Gradients of every factor, whole; what a greedy sampler says; saved under the name."""
    mesh = device_mesh(2)["tensor"]
    exact = adapted(name, torch.float64)
    tensor_parallel(exact, mesh)
    cases.loss(exact).backward()
    model = adapted(name)
    tensor_parallel(model, mesh)
    model.save(Path(folder, name))
    return {
        "gradients": {key: exact.parallel.whole(key, p.grad) for key, p in lora_parameters(exact)},
        "frozen": all(p.grad is None for p in exact.parameters() if not p.requires_grad),
        "answers": greedy(model),
    }


def greedy(model: Model) -> Any:
    return cases.outcome(Sampler(model).generate(cases.prompts_of(model), cases.GREEDY))


def logits_of_loaded(folder: str, base_dtype: str | None) -> Tensor:
    """The adapter and its base read into the ranks' parts."""
    mesh = device_mesh(2)["tensor"]
    model = load_model(folder, split=lambda m: tensor_parallel(m, mesh), base_dtype=base_dtype)
    with torch.no_grad():
        return cases.logits(model)


def fresh_and_late(folder: str) -> tuple[dict[str, Tensor], str]:
    """A fresh adapter on split weights, its factors whole; and one that comes too late."""
    mesh = device_mesh(2)["tensor"]
    wanted = Adapter(ADAPTED["llama"], seed=7)
    model = load_model(folder, split=lambda m: tensor_parallel(m, mesh), adapter=wanted)
    factors = {key: model.parallel.whole(key, p) for key, p in lora_parameters(model)}
    split = cases.model_of("llama")
    tensor_parallel(split, mesh)
    return factors, cases.refusal(lambda: add_lora(split))


def trains_copied_heads() -> str:
    model = add_lora(cases.model_of("copies"), LoraConfig(2, 2.0))
    tensor_parallel(model, device_mesh(2)["tensor"])
    return cases.refusal(lambda: cases.loss(model))


def on_16_bits(base_dtype: str | None) -> Model:
    """Factors in fp32 beside a base in bf16, fp8 or int8."""
    model = random_model(cases.EVERY["llama"], seed=1, std=0.25, dtype=torch.bfloat16)
    if base_dtype:
        quantise_into(model, BASE_DTYPES[base_dtype])
    return filled(add_lora(model, ADAPTED["llama"], seed=3))


def sharded(base_dtype: str | None) -> dict[str, Tensor]:
    """Gradients of every factor under FSDP."""
    model = on_16_bits(base_dtype)
    shard(model, device_mesh(1)["data"])
    cases.loss(model).backward()
    factors: Any = lora_parameters(model)
    return {name: factor.grad.full_tensor() for name, factor in factors}
