"""Small models and dense answers to hold the sampler against."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from srlm_fast.kernels.native import available, native
from srlm_fast.model import Model, ModelConfig, PackedContext, random_model
from srlm_fast.sampler import Sampler, SamplingParams

CONFIGS = {
    "llama": ModelConfig(
        "llama", 97, 48, 80, 3, 4, 2, 12, max_position_embeddings=160, eos_token_ids=(2,)
    ),
    "llama-3": ModelConfig(
        "llama",
        131,
        64,
        96,
        2,
        8,
        1,
        16,
        rope_theta=500000.0,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        tie_word_embeddings=True,
        max_position_embeddings=256,
        eos_token_ids=(2, 5),
    ),
    "mistral": ModelConfig(
        "mistral", 101, 48, 64, 2, 6, 3, 8, windows=(21, 21), max_position_embeddings=160
    ),
    "qwen2": ModelConfig(
        "qwen2",
        90,
        56,
        72,
        2,
        7,
        7,
        8,
        qkv_bias=True,
        tie_word_embeddings=True,
        max_position_embeddings=160,
    ),
    "qwen3": ModelConfig(
        "qwen3", 90, 40, 72, 2, 5, 1, 24, qk_norm=True, max_position_embeddings=160
    ),
}

# The levels of the instruction set that this machine has.
ISAS = native().isas() if available() else []


@contextmanager
def isa_level(name: str) -> Iterator[None]:
    """Native kernels held down to one level."""
    before = native().isa()
    native().set_isa(name)
    try:
        yield
    finally:
        native().set_isa(before)


def small_model(name: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32) -> Model:
    """Random weights, spread enough that greedy text does not settle on one token."""
    model = random_model(CONFIGS[name], seed=seed, std=0.25, dtype=dtype)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for key, weight in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def random_prompts(model: Model, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    size = model.config.vocab_size
    return [torch.randint(3, size, (n,), generator=generator).tolist() for n in lengths]


def dense_logits(model: Model, token_ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of a plain packed forward."""
    context = PackedContext([len(token_ids)], model.config.windows)
    with torch.no_grad():
        hidden = model(torch.tensor(token_ids), torch.arange(len(token_ids)), context)
        return hidden @ model.head.T


def outcome(generations):
    """What must be bitwise the same: tokens and log-probabilities of every sample."""
    return [[(s.token_ids, s.logprobs, s.finish_reason) for s in g.samples] for g in generations]


def sampled(model: Model, prompts, params: SamplingParams, **options):
    return outcome(Sampler(model, **options).generate(prompts, params))
