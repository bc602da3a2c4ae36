"""Make the tiny M0 from nothing: tokenizer, then pretraining on documents of the tiny world.

    python -m srlm_fast.tiny.make_m0 --out FOLDER [--steps-scale 1.0] [--seed 0]

Each stage goes on from the one before and brings its learning rate down to about zero, so every
stage ends with weights that can be judged. They are written to FOLDER/stage-<name>, and a stage
that lies there is not made again; the last one goes to FOLDER/m0 in half precision.

Budget: 15,700 steps of about 2,010 tokens, 31.6 million tokens in all; 77 minutes (4,600
CPU-seconds) on one core of an AMD EPYC (Zen 3) at 6,900 tokens/s. The same seed, thread count and
torch build give the same weights; the shipped ones are of seed 0 and one thread
(OMP_NUM_THREADS=1). What the stages brought, greedily, on held-out instructions (correct answers;
judge's verdict on correctness; its order of answers that gold scores apart): a .66, .53, .70;
b .82, .75, .85; c .92, .92, .95; d .93, .96, .97.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from srlm_fast.model import Model, ModelConfig, PackedContext, random_model
from srlm_fast.tiny.answers import Flaws
from srlm_fast.tiny.documents import Mixture, documents
from srlm_fast.tiny.tokenizer import VOCAB_SIZE, DocumentEncoder, train_tokenizer

BATCH_TOKENS = 2048
POOL_DOCUMENTS = 4096
TOKENIZER_DOCUMENTS, FEWEST_DOCUMENTS = 20000, 1000
WARM_UP_STEPS = 100
PRINT_EVERY = 100
A_FEW = Flaws(off_topic=0.01, wrong=0.02, hedge=0.03, style=0.03, extra=0.03, doubled=0.01)


@dataclass(frozen=True)
class Stage:
    """One run of the optimizer, its learning rate going to zero at the end."""

    name: str
    steps: int
    learning_rate: float
    mixture: Mixture


STAGES = (
    Stage("a", 2400, 3e-3, Mixture(question=0.45, review=0.15, tasks=0.05, compare=0.2, copy=0.15)),
    Stage("b", 2800, 3e-3, Mixture(question=0.3, review=0.5, tasks=0.05, compare=0.15, copy=0.0)),
    Stage("c", 4500, 2.5e-3, Mixture(0.35, 0.5, 0.05, 0.1, 0.0, A_FEW, 1.0)),
    Stage("d", 6000, 2.5e-3, Mixture(0.38, 0.48, 0.07, 0.07, 0.0, A_FEW, 1.0)),
)


def tiny_config(tokenizer: Any) -> ModelConfig:
    """Shape of the tiny model: just under a million weights."""
    return ModelConfig(
        family="llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        eos_token_ids=(tokenizer.eos_token_id,),
    )


@dataclass(frozen=True)
class Batch:
    """Documents padded to [rows, length]; weights are those of the token predicted."""

    token_ids: Tensor
    weights: Tensor


def _pad(rows: Sequence[tuple[list[int], list[float]]], pad_id: int) -> Batch:
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([i + [pad_id] * (length - len(i)) for i, _ in rows])
    weights = torch.tensor([w + [0.0] * (length - len(w)) for _, w in rows])
    return Batch(ids, weights)


def batches(tokenizer: Any, mixture: Mixture, seed: int) -> Iterator[Batch]:
    """Endless batches of at most `BATCH_TOKENS` tokens, each of documents of like length."""
    rng, encoder = random.Random(seed), DocumentEncoder(tokenizer)
    while True:
        rows = [encoder.encode(d) for d in documents(rng, mixture, POOL_DOCUMENTS)]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from (_pad(group, tokenizer.eos_token_id) for group in groups)


def loss_of(model: Model, batch: Batch) -> Tensor:
    """Weighted mean negative log-likelihood of a batch, nats per unit of weight."""
    rows, length = batch.token_ids.shape
    context = PackedContext([length] * rows, model.config.windows)
    hidden = model(batch.token_ids.flatten(), context.positions, context)
    weights = F.pad(batch.weights[:, 1:], (0, 1)).flatten()
    rows_kept = weights.nonzero().squeeze(1)
    targets = batch.token_ids.flatten().roll(-1)[rows_kept]
    logits = F.linear(hidden.index_select(0, rows_kept), model.head)
    weights = weights[rows_kept]
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum() / weights.sum()


def _rate(step: int, steps: int) -> float:
    warm_up = min(WARM_UP_STEPS, max(steps // 10, 1))
    return min((step + 1) / warm_up, (steps - step) / (steps - warm_up + 1))


def run_stage(model: Model, stage: Stage, steps: int, seed: int) -> int:
    """Train one stage in place; returns the number of tokens seen."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, betas=(0.9, 0.98), weight_decay=0.02, fused=True
    )
    source = batches(model.tokenizer, stage.mixture, seed)
    start, tokens, total = time.perf_counter(), 0, torch.zeros(())
    for step, batch in zip(range(steps), source, strict=False):
        optimizer.param_groups[0]["lr"] = stage.learning_rate * _rate(step, steps)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += batch.token_ids.numel()
        total += loss.detach()
        if (step + 1) % PRINT_EVERY == 0:
            speed = tokens / (time.perf_counter() - start)
            mean, total = total.item() / PRINT_EVERY, torch.zeros(())
            print(f"{stage.name} {step + 1}/{steps} loss {mean:.4f} {speed:.0f} tok/s", flush=True)
    return tokens


def save_half(model: Model, folder: Path) -> None:
    """Write a model in half precision, leaving the model itself as it is."""
    half = random_model(model.config, model.tokenizer)
    half.load_state_dict(model.state_dict())
    end = model.tokenizer.eos_token_id
    half.generation_config = {"eos_token_id": end, "pad_token_id": end}
    half.to(torch.float16).save(folder)


def pretrain(folder: Path, seed: int, steps_scale: float) -> Model:
    """Run the stages; one that already lies in `folder` is read instead."""
    count = max(int(TOKENIZER_DOCUMENTS * min(steps_scale, 1.0)), FEWEST_DOCUMENTS)
    tokenizer = train_tokenizer(seed, count)
    model = random_model(tiny_config(tokenizer), tokenizer, seed).train()
    for i, stage in enumerate(STAGES):
        place = folder / f"stage-{stage.name}"
        if place.exists():
            model.load_weights(place)
            continue
        run_stage(model, stage, max(int(stage.steps * steps_scale), 2), seed * 1000 + i)
        model.save(place)
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m srlm_fast.tiny.make_m0", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps-scale", type=float, default=1.0)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    save_half(pretrain(options.out, options.seed, options.steps_scale), options.out / "m0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
