"""The decoder on packed weights: the native form of `Model.forward` that a CPU sampler runs.

A library's matmul may add in another order when the number of rows changes, so that a row's bits
depend on its company; and on a small model most of a step is the interpreter between the
operations. Here one call runs all layers (csrc/decoder.cpp), and each output of a linear layer is
one chain of multiply-adds, whatever stands beside it. A bfloat16 model keeps its residual stream
and all sums in fp32 and rounds only what enters a matmul or the pages. The price is a second copy
of the matrices, so models beyond a stated share of the memory run on torch.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.native import available, native
from ..kernels.rope import rope_angles
from ..model import Model
from .paged import PagedCache, PagedContext

PACKED_DTYPES = (torch.float32, torch.bfloat16)


def max_packed_bytes() -> int:
    """What the second copy of the matrices may take: a quarter of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


class PackedDecoder:
    """Holds panels of the matrices, norms and biases as they are now; the embedding by address.

    nbytes: of the matrices.
    """

    def __init__(self, model: Model, cache: PagedCache) -> None:
        c = model.config
        self.model, self.vocab_size = model, c.vocab_size
        self.nbytes = matrix_bytes(model)
        self._logits = torch.empty(0, c.vocab_size)
        self._decoder = native().Decoder(
            cache.native_shape,
            c.hidden_size,
            c.rms_norm_eps,
            model.embed.weight.data_ptr(),
            model.norm.weight.data_ptr(),
            model.head.data_ptr(),
            c.vocab_size,
        )
        for index, layer in enumerate(model.layers):
            self._add_layer(layer, c.windows[index] or 0, cache.keys[index], cache.values[index])

    def _add_layer(self, layer: Any, window: int, keys: Tensor, values: Tensor) -> None:
        self._decoder.add_layer(
            *map(_linear, (layer.qkv, layer.o, layer.gate_up, layer.down)),
            *map(_norm, (layer.attn_norm, layer.mlp_norm, layer.q_norm, layer.k_norm)),
            window,
            keys.data_ptr(),
            values.data_ptr(),
        )

    def forward(self, plan: Any, context: PagedContext) -> Tensor:
        """The planned step's hidden rows after the final norm: [T, D] in the model's dtype."""
        model = self.model
        positions = torch.from_numpy(plan.positions)
        cos, sin = rope_angles(positions, model.rope_frequencies, model.rope_scale)
        hidden = torch.empty(len(positions), model.config.hidden_size, dtype=model.dtype)
        self._decoder.forward(
            plan.token_ids, cos.data_ptr(), sin.data_ptr(), context.batch, hidden.data_ptr()
        )
        return hidden

    def logits(self, hidden: Tensor, rows: Any) -> Tensor:
        """hidden [T, D], rows [U] int64 -> logits [U, V] fp32, in memory that the next call uses
        again: fresh memory each step
        would cost a page fault for every 1,024 logits.
        """
        if len(rows) > len(self._logits):
            self._logits = torch.empty(len(rows), self.vocab_size)
        out = self._logits[: len(rows)]
        self._decoder.head(hidden.data_ptr(), rows, out.data_ptr())
        return out


def can_pack(model: Model) -> bool:
    """Whether a model can run packed: fp32 or bf16 on a CPU, plain layers, small enough to be held
    twice.
    """
    if model.device.type != "cpu" or model.dtype not in PACKED_DTYPES or not available():
        return False
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    plain = all(type(m) is nn.Linear for m in linears) and len(linears) == _expected(model)
    plain &= all(type(p) is nn.Parameter for p in model.parameters())  # no DTensor has an address
    uniform = all(p.is_contiguous() and p.dtype == model.dtype for p in model.parameters())
    return plain and uniform and matrix_bytes(model) <= max_packed_bytes()


def matrix_bytes(model: Model) -> int:
    """Of a model's linear layers and its head."""
    linears = (m.weight for m in model.modules() if isinstance(m, nn.Linear))
    return sum({id(w): w.nbytes for w in (*linears, model.head)}.values())


def _expected(model: Model) -> int:
    """Linear modules of a plain decoder; adapters or replaced layers make another number."""
    return 4 * len(model.layers) + (model.lm_head is not None)


def _linear(module: nn.Linear) -> tuple[int, int, int, int]:
    bias = 0 if module.bias is None else module.bias.data_ptr()
    return module.weight.data_ptr(), bias, module.out_features, module.in_features


def _norm(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return 0 if weight is None else weight.data_ptr()
