"""Bytes on each device while training and while sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from srlm_fast.config import Config
from srlm_fast.model import ModelConfig

from .activations import kept_bytes, layer_bytes
from .lengths import context_tokens, is_summed, response_share, tokens_at_once
from .mesh import Mesh
from .recipe import FORMATS, FP32, Recipe
from .shape import (
    adapter_parameters,
    file_bytes,
    linears,
    matrix_parameters,
    prompt_model_config,
    rank_parameters,
    table_parameters,
    widest_matrix,
)

# Of a device: most that training takes, and what sampling leaves to its own buffers and graphs.
TRAINING_SHARE, SAMPLING_SHARE = 0.95, 0.9
# Blocks of logits of `linear_logprob` on a GPU (kernels/logprob_route.py).
BLOCK_BYTES = 256 << 20
HEAD_FACTOR, HEAD_BLOCKS = 5, 4
# That the sampler runs side by side, and its pool where nothing else is said (sampler/engine.py).
MOST_SEQUENCES = 256
LEAST_SEQUENCES = 16  # with fewer a step of decoding reads all weights for next to nothing
POOL_SHARE, HOST_POOL = 0.25, 2**29


@dataclass(frozen=True)
class Memory:
    """Bytes on each device. What trains and what samples are never there together.

    workspace: blocks of logits, and the one frozen matrix that is widened at a time. recompute: the
    layer that is made again. gathered: what sharded ranks put together of weights and gradients
    while a layer runs. sampling: weights while sampling, gathered over data ranks. reward_model:
    beside the weights while it scores; nothing else is there then. prompt_model: beside the weights
    while it makes prompts, and there is a pool then. pool: of keys and values.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    recompute: float
    workspace: float
    gathered: float
    sampling: float
    pool: float
    kv_token: float
    least_tokens: float  # that the pool must hold
    available: float
    reward_model: float = 0.0
    prompt_model: float = 0.0

    @property
    def training(self) -> float:
        state = self.weights + self.gradients + self.optimizer + self.gathered
        return state + self.activations + self.recompute + self.workspace

    @property
    def kv_room(self) -> float:
        """What is left for keys and values beside the weights, a prompt model's with them."""
        return room(self.available, self.sampling + self.prompt_model)

    @property
    def kv_tokens(self) -> int:
        """That the pool holds."""
        return int(self.pool / self.kv_token)

    @property
    def fits(self) -> bool:
        most = max(self.training, self.sampling + self.reward_model)
        fits = most <= TRAINING_SHARE * self.available and self.pool <= self.kv_room
        return fits and self.kv_tokens >= self.least_tokens


def room(available: float, sampling: float) -> float:
    return max(0.0, SAMPLING_SHARE * available - sampling)


def memory_of(
    model: ModelConfig,
    config: Config,
    recipe: Recipe,
    mesh: Mesh,
    available: float,
    dtype: torch.dtype,
    checkpointing: bool = False,
    pool: float | None = None,
    least: int = LEAST_SEQUENCES,
) -> Memory:
    """dtype: of the weights. pool: bytes for keys and values (default: what the sequences that
    run side by side may need, or all there is room for). least: sequences that it must hold. Tokens
    are those that one rank trains on at once.
    """
    width = dtype.itemsize
    kv_token = kv_token_bytes(model, width, mesh.tensor)
    learned = learned_parameters(model, recipe, mesh.tensor)
    held = weight_bytes(model, recipe, mesh.tensor, width)
    tokens = tokens_at_once(config, mesh.data)
    layer = layer_bytes(model, width, mesh.tensor, config.dpo.dropout > 0, recipe.lora_rank)
    summed = is_summed(config, mesh.data)
    gradient, state = recipe.trained_bytes(dtype, summed, mesh.shard)
    parts = mesh.parts / mesh.tensor
    beside = prompt_model_bytes(config, width, mesh.tensor)
    most = MOST_SEQUENCES * context_tokens(config) * kv_token
    # Factors of LoRA in the dtype of what they are multiplied with.
    rounded = learned * width * bool(recipe.lora_rank) * (not checkpointing)
    return Memory(
        weights=held / parts,
        gradients=learned * gradient / parts,
        optimizer=learned * state / parts,
        activations=tokens * kept_bytes(model, width, layer, checkpointing) + rounded,
        recompute=tokens * layer * checkpointing,
        workspace=workspace_bytes(model, config, recipe, mesh, width),
        gathered=gathered_bytes(model, recipe, mesh, width),
        sampling=held,
        pool=min(room(available, held + beside), most) if pool is None else pool,
        kv_token=kv_token,
        least_tokens=least * context_tokens(config),
        available=available,
        reward_model=reward_bytes(model, config, width),
        prompt_model=beside,
    )


def learned_parameters(model: ModelConfig, recipe: Recipe, tensor: int = 1) -> float:
    """Weights with a gradient, on one of `tensor` ranks."""
    if recipe.lora_rank:
        return adapter_parameters(model, recipe.lora_rank, tensor)
    return rank_parameters(model, tensor)


def weight_bytes(model: ModelConfig, recipe: Recipe, tensor: int, width: int) -> float:
    """Of all weights, the adapter's too, on one of `tensor` ranks."""
    base = rank_parameters(model, tensor) * width
    if recipe.has_format:
        bytes_each, scale = FORMATS[recipe.base_dtype]
        rows = model.num_layers * sum(out for _, out in linears(model))
        base -= (matrix_parameters(model) * (width - bytes_each) - rows * scale) / tensor
    return base + adapter_parameters(model, recipe.lora_rank, tensor) * FP32


def kv_token_bytes(model: ModelConfig, width: int, tensor: int = 1) -> float:
    """Keys and values of one token over all layers."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * width / tensor


def workspace_bytes(
    model: ModelConfig, config: Config, recipe: Recipe, mesh: Mesh, width: int
) -> float:
    """Of the head with the rows it reads, and of a quantised matrix widened for the matmul."""
    rows = tokens_at_once(config, mesh.data) * response_share(config)
    columns, depth = model.vocab_size / mesh.tensor, model.hidden_size
    if recipe.lora_rank:
        logits, more = min(rows * columns * width, BLOCK_BYTES), 0
    else:
        budget = max(HEAD_FACTOR * columns * depth, HEAD_BLOCKS * BLOCK_BYTES)
        logits, more = min(rows * columns * width, budget), FP32
    widened = widest_matrix(model) / mesh.tensor * width * recipe.has_format
    return logits + rows * depth * (width + more) + widened


def gathered_bytes(model: ModelConfig, recipe: Recipe, mesh: Mesh, width: int) -> float:
    """Embedding, head and two layers (one that runs, one that comes), and where they are learned
    the gradients of the tables and of one layer.
    """
    if not mesh.shard:
        return 0.0
    tables = table_parameters(model) * width
    layer = weight_bytes(model, recipe, 1, width) - tables
    found = tables + 2 * layer / model.num_layers
    if not recipe.lora_rank:
        found += tables + layer / model.num_layers
    return found / mesh.tensor


def default_pool(available: float, on_cpu: bool) -> float:
    """The sampler's own budget."""
    return min(POOL_SHARE * available, HOST_POOL) if on_cpu else POOL_SHARE * available


def prompt_model_bytes(config: Config, width: int, tensor: int) -> float:
    """Of the weights of another model that makes prompts, on one of `tensor` ranks, where it is
    known.
    """
    other = prompt_model_config(config)
    return 0.0 if other is None else rank_parameters(other, tensor) * width


def reward_bytes(model: ModelConfig, config: Config, width: int) -> float:
    """Of the reward model's weights: its files' on this machine, or as many as the trained one has.
    One that is neither here nor trained by the run counts as none.
    """
    if config.reward_model is None:
        return float(model.num_parameters() * width) if config.reward_pairs_file else 0.0
    return float(file_bytes(config.reward_model))
