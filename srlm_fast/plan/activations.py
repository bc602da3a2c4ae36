"""Bytes that the backward pass needs of the forward pass, for a token.

Of a layer, in the form that runs on a GPU (rms_norm, rope and swiglu keep what they were given;
attention keeps q, k and v for itself, not the projection that they are cut from):

    sums before both norms       2 D         their norms, inputs of two projections  2 D
    q and k as rotated, and v    (H + 2G) K  attention's output                      H K
    gate and up, their product   2 F + F     with head norms also q, k and v         (H + 2G) K
                                             as projected

and in float32 one number a row and norm (one a head with head norms) and one a head of attention.
With checkpointing a layer keeps the one sum it was given, and its own are made again one layer at a
time.
"""

from __future__ import annotations

from srlm_fast.model import ModelConfig

from .recipe import FP32


def layer_bytes(
    model: ModelConfig, width: int, tensor: int = 1, dropout: bool = False, lora_rank: int = 0
) -> float:
    """Of one token in one layer, on one of `tensor` ranks."""
    queries, keys = model.num_heads, model.num_kv_heads
    heads = 2 * (queries + keys) + (queries + 2 * keys) * model.qk_norm
    split = heads * model.head_dim + 3 * model.intermediate_size
    norms = 2 + (queries + keys) * model.qk_norm / tensor
    masks = 2 * model.hidden_size * dropout
    adapters = 7 * lora_rank * width
    statistics = FP32 * (norms + queries / tensor)
    return width * (4 * model.hidden_size + split / tensor) + statistics + masks + adapters


def kept_bytes(model: ModelConfig, width: int, layer: float, checkpointing: bool) -> float:
    """Of one token over all layers of `layer` bytes each, the last norm and its rotation."""
    ends = 2 * model.hidden_size * width + FP32 + FP32 * model.head_dim
    if checkpointing:
        layer = model.hidden_size * width
    return model.num_layers * layer + ends
