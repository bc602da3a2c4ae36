"""A Llama's train step as one writes it with care in plain PyTorch: the floor of what a library
should cost. Weights and moments in fp32, matmuls under autocast, AdamW fused, sequences of one
length without padding, the head on response tokens only, the reference's log-probs given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.train_clock import StepClock
from benchmarks.train_work import BETA, LEARNING_RATE, TrainWork
from srlm_fast.model import load_model
from srlm_fast.model.config import ModelConfig


class BareLlama:
    """Prompts [P, Lp] and responses [R, Lr], R / P to a prompt. shared: a prompt is run once, or
    else once for each of its responses.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], work: TrainWork) -> None:
        self.config, self.work = config, work
        self.weights = weights

    def response_logps(self, prompts: Tensor, responses: Tensor, shared: bool) -> Tensor:
        """[R, Lr] fp32 nats."""
        w, c = self.weights, self.config
        if not shared:
            prompts = prompts.repeat_interleave(len(responses) // len(prompts), 0)
        self.shape = (*prompts.shape, *responses.shape)
        x = F.embedding(torch.cat((prompts.flatten(), responses.flatten())), w["embed.weight"])
        turns = self.turns(x.device)
        for i in range(c.num_layers):
            at = f"layers.{i}."
            h = F.rms_norm(x, x.shape[-1:], w[at + "attn_norm.weight"], c.rms_norm_eps)
            h = self.attend(F.linear(h, w[at + "qkv.weight"]), *turns)
            x = x + F.linear(h, w[at + "o.weight"])
            h = F.rms_norm(x, x.shape[-1:], w[at + "mlp_norm.weight"], c.rms_norm_eps)
            gate, up = F.linear(h, w[at + "gate_up.weight"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w[at + "down.weight"])
        x = F.rms_norm(x, x.shape[-1:], w["norm.weight"], c.rms_norm_eps)
        before, after = self.parts(x)
        last = before[:, -1:].repeat_interleave(len(responses) // len(before), 0)
        logits = F.linear(torch.cat((last, after[:, :-1]), 1), w["lm_head.weight"]).float()
        return -F.cross_entropy(logits.flatten(0, 1), responses.flatten(), reduction="none").view(
            responses.shape
        )

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, ...] -> prompts [P, Lp, ...], responses [R, Lr, ...]."""
        P, Lp, R, Lr = self.shape
        before, after = x.split((P * Lp, R * Lr))
        return before.unflatten(0, (P, Lp)), after.unflatten(0, (R, Lr))

    def turns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos, sin [T, 1, K]."""
        P, Lp, R, Lr = self.shape
        places = torch.arange(Lp + Lr, device=device)
        positions = torch.cat((places[:Lp].repeat(P), places[Lp:].repeat(R)))
        half = torch.arange(0, self.config.head_dim, 2, device=device) / self.config.head_dim
        angles = (positions[:, None] / self.config.rope_theta**half).repeat(1, 2)[:, None]
        return angles.cos(), angles.sin()

    def attend(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.config
        groups = (c.num_heads, c.num_kv_heads, c.num_kv_heads)
        q, k, v = qkv.unflatten(1, (-1, c.head_dim)).split(groups, 1)
        q, k = (self.turned(x, cos.to(x), sin.to(x)) for x in (q, k))
        (q1, q2), (k1, k2), (v1, v2) = (
            [part.transpose(1, 2) for part in self.parts(x)] for x in (q, k, v)
        )
        gqa = {"enable_gqa": c.num_heads != c.num_kv_heads}
        first = F.scaled_dot_product_attention(q1, k1, v1, is_causal=True, **gqa)
        each = len(q2) // len(q1)
        keys, values = (
            torch.cat((a.repeat_interleave(each, 0), b), 2) for a, b in ((k1, k2), (v1, v2))
        )
        sees = torch.ones(q2.shape[2], keys.shape[2], dtype=torch.bool, device=q.device)
        mask = sees.tril(keys.shape[2] - q2.shape[2])
        second = F.scaled_dot_product_attention(q2, keys, values, attn_mask=mask, **gqa)
        return torch.cat([x.transpose(1, 2).flatten(0, 1).flatten(1) for x in (first, second)])

    @staticmethod
    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin


def run_bare(work: TrainWork, folder: str, shared: bool, clock: StepClock) -> None:
    """A process's whole work: `work.steps` + 1 steps."""
    model = load_model(folder, work.device, torch.float32)
    config = model.config
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    del model
    bare = BareLlama(config, weights, work)
    rows = work.ids(config.vocab_size)
    prompts = torch.tensor([row[0] for row in rows], device=work.device)
    responses = torch.tensor([ids for row in rows for ids in row[1:]], device=work.device)
    autocast = torch.autocast(work.device, torch.bfloat16, enabled=work.dtype == "bf16")
    with torch.no_grad(), autocast:
        reference = bare.response_logps(prompts, responses, shared).sum(1)
    adamw = torch.optim.AdamW(weights.values(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    clock.begin()
    for _ in range(work.steps + 1):
        with autocast:
            logps = bare.response_logps(prompts, responses, shared)
        if work.kind == "dpo":
            margins = (logps.sum(1) - reference).view(-1, 2)
            loss = -F.logsigmoid(BETA * (margins[:, 0] - margins[:, 1])).mean()
        else:
            loss = -logps.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        adamw.step()
        adamw.zero_grad()
        clock.tick(loss.item())
