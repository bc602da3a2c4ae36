"""The decoder: one class for Llama 2/3, Mistral, Qwen2 and Qwen3, shared by sampler, judge, policy
and reference.

It takes a flat stream of tokens and returns hidden rows after the final norm. It holds no logits
and no cache: the head is applied by whoever needs it, attention is the context's business.
Projections are stored fused: qkv, gate_up.

Shape letters: T tokens, D width, H heads, G key/value heads, K head width, F feed-forward width, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels.linear import linear
from ..kernels.rms_norm import rms_norm, rms_norm_residual
from ..kernels.rope import rope_angles, rope_qk, rope_qkv
from ..kernels.swiglu import swiglu
from .config import ModelConfig
from .context import Context, FusedContext
from .parallel import Layout, Parallel
from .rope import rope_frequencies

if TYPE_CHECKING:
    from .lora import Adapter


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.local_weight, self.eps)

    def of_sum(self, x: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and x + residual; without x of residual alone."""
        if x is None:
            return self(residual), residual
        return rms_norm_residual(x, residual, self.local_weight, self.eps)

    @property
    def local_weight(self) -> Tensor:
        """The plain tensor that runs; a split over ranks puts something else here."""
        return self.weight


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x); what is a plain linear layer, and not split or adapted, by `kernels.linear`."""
    return linear(x, layer.weight, layer.bias) if type(layer) is nn.Linear else layer(x)


class Layer(nn.Module):
    """One block: hidden + attention(norm(hidden)), then + feed-forward(norm(hidden)).

    The last sum is left to the next norm, which makes it on the way: a block takes and returns the
    residual stream and what is still to be added to it.
    """

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        c = config
        self.index = index
        self.heads = (c.num_heads, c.num_kv_heads, c.num_kv_heads)
        self.head_dim = c.head_dim
        self.attn_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.qkv = nn.Linear(c.hidden_size, sum(self.heads) * c.head_dim, bias=c.qkv_bias)
        self.q_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.rms_norm_eps) if c.qk_norm else nn.Identity()
        self.o = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.o_bias)
        self.mlp_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.gate_up = nn.Linear(c.hidden_size, 2 * c.intermediate_size, bias=c.mlp_bias)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(
        self, delta_TD: Tensor | None, hidden_TD: Tensor, cos: Tensor, sin: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        if not (self.checkpointing and torch.is_grad_enabled()):
            return self.block(delta_TD, hidden_TD, cos, sin, context)
        # Only the sum is kept. With zeros added to it, it goes through the operations of a sum.
        is_sum = delta_TD is not None
        return checkpoint(
            lambda x_TD: self.block(
                torch.zeros_like(x_TD) if is_sum else None, x_TD, cos, sin, context
            ),
            hidden_TD if delta_TD is None else delta_TD + hidden_TD,
            use_reentrant=False,
            preserve_rng_state=self.draws_noise,
        )

    @property
    def draws_noise(self) -> bool:
        """Whether a forward pass in train mode drops anything, its adapter's included."""
        adapters = (getattr(linear, "lora", None) for linear in self.children())
        return self.dropout_p > 0 or any(getattr(lora, "dropout", 0.0) > 0 for lora in adapters)

    def block(
        self, delta_TD: Tensor | None, hidden_TD: Tensor, cos: Tensor, sin: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        x_TD, hidden_TD = self.attn_norm.of_sum(delta_TD, hidden_TD)
        x_TD = self.drop(self.attention(x_TD, cos, sin, context))
        x_TD, hidden_TD = self.mlp_norm.of_sum(x_TD, hidden_TD)
        return self.drop(project(self.down, swiglu(project(self.gate_up, x_TD)))), hidden_TD

    def attention(self, x_TD: Tensor, cos: Tensor, sin: Tensor, context: Context) -> Tensor:
        qkv = project(self.qkv, x_TD)
        if isinstance(context, FusedContext):
            out = context.attend_qkv(self.index, qkv, cos, sin, *self.head_norms())
            return project(self.o, out.flatten(1))
        if isinstance(self.q_norm, RMSNorm):
            q, k, v = qkv.unflatten(1, (-1, self.head_dim)).split(self.heads, dim=1)
            q, k = rope_qk(self.q_norm(q), self.k_norm(k), cos, sin)
        else:
            q, k, v = rope_qkv(qkv, self.heads, cos, sin)
        out = context.attend(self.index, q, k, v)
        return project(self.o, out.flatten(1))

    def head_norms(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Weights and epsilon of the norms of query and key heads, where the family has them."""
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            return self.q_norm.local_weight, self.k_norm.local_weight, self.q_norm.eps
        return None, None, 0.0

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout_p, self.training) if self.dropout_p else x

    dropout_p: float = 0.0
    checkpointing: bool = False


class Model(nn.Module):
    """A decoder with its configuration and tokenizer.

    `weights_version` changes whenever the weights do (`touch`); whatever was computed from them is
    keyed by it.
    """

    def __init__(self, config: ModelConfig, tokenizer: Any = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.generation_config: dict[str, Any] = {}
        self.weights_version = 0
        self.parallel: Parallel | None = None  # how the heads are split over ranks, if they are
        self.layout: Layout | None = None  # how the weights lie on ranks, if they are split at all
        self.adapter: Adapter | None = None  # what trains beside frozen weights (lora.py), if any
        self.source, self.folder = "", Path()  # what the weights were loaded from, by name
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = (
            None
            if config.tie_word_embeddings or config.num_labels
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.score = (
            nn.Linear(config.hidden_size, config.num_labels, bias=False)
            if config.num_labels
            else None
        )
        self.rope_frequencies: Tensor
        self.register_buffer("rope_frequencies", torch.empty(0), persistent=False)
        self.rope_scale = 1.0

    def forward(self, token_ids: Tensor, positions: Tensor, context: Context) -> Tensor:
        """token_ids, positions [T] int64 -> hidden [T, D] after the final norm, in the model's
        dtype.
        """
        delta_TD, hidden_TD = None, self.embed(token_ids)
        cos, sin = rope_angles(positions, self.rope_frequencies, self.rope_scale)
        for layer in self.layers:
            delta_TD, hidden_TD = layer(delta_TD, hidden_TD, cos, sin, context)
        return self.norm.of_sum(delta_TD, hidden_TD)[0]

    def logits(self, hidden_UD: Tensor) -> Tensor:
        """[U, V] in the model's dtype, on every rank."""
        if self.parallel is None:
            return F.linear(hidden_UD, self.head)
        return self.parallel.logits(hidden_UD, self.head)

    @property
    def head(self) -> Tensor:
        """[V, D]; the embedding itself when tied. A DTensor where the weights are split."""
        return self.embed.weight if self.lm_head is None else self.lm_head.weight

    @property
    def local_config(self) -> ModelConfig:
        """The configuration with this rank's share of the heads, which is what attention sees."""
        heads, kv_heads, _ = self.layers[0].heads  # type: ignore[misc]
        return self.config.replace(num_heads=heads, num_kv_heads=kv_heads)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.weight.dtype

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: generation_config's, the config's and the tokenizer's, without
        repeats.
        """
        found = self.generation_config.get("eos_token_id")
        ids = [] if found is None else list(found) if isinstance(found, list) else [found]
        ids += self.config.eos_token_ids
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            ids.append(self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(ids))

    @property
    def dropout_p(self) -> float:
        """Dropout on each block's two residual branches, in train mode only."""
        return self.layers[0].dropout_p  # type: ignore[return-value]

    @dropout_p.setter
    def dropout_p(self, value: float) -> None:
        for layer in self.layers:
            layer.dropout_p = value  # type: ignore[assignment]

    @property
    def draws_noise(self) -> bool:
        """Whether a forward pass in train mode draws random numbers."""
        return any(layer.draws_noise for layer in self.layers)  # type: ignore[union-attr]

    @property
    def checkpointing(self) -> bool:
        """Whether backward runs each block again from its inputs, all that is kept of it then
        (arXiv 1604.06174).
        """
        return self.layers[0].checkpointing  # type: ignore[return-value]

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        for layer in self.layers:
            layer.checkpointing = value  # type: ignore[assignment]

    def touch(self) -> None:
        """Say that the weights have changed."""
        self.weights_version += 1

    def set_rope(self) -> None:
        """Compute the rotary frequencies (fp32) on the model's device, whatever the weights'
        dtype.
        """
        frequencies, self.rope_scale = rope_frequencies(self.config)
        self.rope_frequencies = frequencies.to(self.device)

    def save(self, folder: str | Path) -> None:
        """Write the Hugging Face layout: config, sharded safetensors with index, tokenizer, chat
        template; of a model with an adapter PEFT's, which is the adapter, the name of its base and
        the tokenizer. Where the weights are split, all ranks call it and the first one writes.
        """
        from .peft import save_adapter
        from .save import save_model

        (save_model if self.adapter is None else save_adapter)(self, Path(folder))

    def load_weights(self, folder: str | Path) -> None:
        """Read another folder's weights of the same shape into these same tensors: an adapter in
        the place of the model's own, or a base, beside which the adapter becomes a fresh one. Where
        they are split, each rank reads its own part of the files. Raises ModelError.
        """
        from .peft import load_into

        load_into(self, Path(folder))
        self.touch()


def empty_model(
    config: ModelConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    tokenizer: Any = None,
    split: Callable[[Model], None] | None = None,
) -> Model:
    """A model whose weights are allocated, once and in their final dtype and place, but not
    filled. split: what splits them over ranks or changes its layers, called before memory is taken.
    """
    with torch.device("meta"):
        model = Model(config, tokenizer).to(dtype)
    if split is not None:
        split(model)
    model.to_empty(device=device)
    model.set_rope()
    return model.eval()


def random_model(
    config: ModelConfig,
    tokenizer: Any = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    std: float | None = None,
) -> Model:
    """Weights from a normal distribution of standard deviation `std` (default hidden_size ** -0.5);
    norms 1, biases 0.
    """
    model = empty_model(config, device, dtype, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    std = config.hidden_size**-0.5 if std is None else std
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.fill_(1.0)
            elif name.endswith("bias"):
                weight.zero_()
            else:
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    return model
