"""What the ranks of a test do: small models, sampled from and trained on a mesh."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from srlm_fast.dist import device_mesh, shard, tensor_parallel, unsharded
from srlm_fast.dist.collectives import sum_over_ranks
from srlm_fast.model import Model, PackedContext, empty_model, random_model
from srlm_fast.model.save import save_model
from srlm_fast.sampler import Sampler, SamplingParams
from srlm_fast.sampler.data_parallel import generate
from srlm_fast.sampler.packed import can_pack
from tests.sampler.helpers import CONFIGS, outcome, random_prompts

# Sizes that two ranks can share; no vocabulary is even but qwen's.
SPLIT = {
    "llama": CONFIGS["llama"].replace(num_layers=2),
    "biases": CONFIGS["llama"].replace(num_layers=2, qkv_bias=True, o_bias=True, mlp_bias=True),
    "mistral": CONFIGS["mistral"].replace(num_kv_heads=2),
    "qwen2": CONFIGS["qwen2"].replace(num_heads=6, num_kv_heads=2),  # biases, tied
    "qwen3": CONFIGS["qwen3"].replace(num_heads=4, num_kv_heads=4),  # norms of q and k
    "copies": CONFIGS["llama-3"],  # one key/value head; tied
}
# And four.
SPLIT_4 = {
    "four": CONFIGS["llama-3"].replace(num_kv_heads=4),
    "copies of two": CONFIGS["llama-3"].replace(num_kv_heads=2, qk_norm=True, family="qwen3"),
}
EVERY = SPLIT | SPLIT_4
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, logprobs=True)
SAMPLED = SamplingParams(n=3, temperature=0.8, top_p=0.9, max_tokens=12, seed=5, logprobs=True)


def model_of(name: str) -> Model:
    """Random weights, norms and biases off their usual values."""
    model = random_model(EVERY[name], seed=1, std=0.25)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def prompts_of(model: Model) -> list[list[int]]:
    return random_prompts(model, [5, 17, 40, 33])


def asked(model: Model) -> tuple[list[list[int]], list[SamplingParams]]:
    """Every prompt, first greedy, then sampled."""
    prompts = prompts_of(model)
    return prompts * 2, [p for p in (GREEDY, SAMPLED) for _ in prompts]


def answers(model: Model, sampler: Sampler | None = None) -> Any:
    """Tokens, log-probabilities and reasons for what is asked."""
    return outcome((sampler or Sampler(model)).generate(*asked(model)))


def text_of(model: Model) -> tuple[Tensor, PackedContext]:
    """Two segments for a packed forward."""
    ids = random_prompts(model, [30], seed=3)[0]
    return torch.tensor(ids), PackedContext([18, 12], model.config.windows)


def logits(model: Model) -> Tensor:
    ids, context = text_of(model)
    return model.logits(model(ids, context.positions, context))


def loss(model: Model) -> Tensor:
    """Of the next token, over a packed text."""
    ids, _ = text_of(model)
    return F.cross_entropy(logits(model)[:-1], ids[1:])


# ------------------------------------------------------------------------------------- the mesh


def coordinates() -> tuple[int, int]:
    mesh = device_mesh(tensor=2)
    return mesh["data"].get_local_rank(), mesh["tensor"].get_local_rank()


def its_rank() -> int:
    device_mesh()
    return dist.get_rank()


def fails_on_rank_1() -> None:
    """The other rank waits for it in vain."""
    device_mesh()
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has had enough")
    dist.barrier()


# ------------------------------------------------------------------------------ tensor parallel


def tensor_answers(tensor: int, names: list[str]) -> dict[str, Any]:
    mesh = device_mesh(tensor)["tensor"]
    found = {}
    for name in names:
        model = model_of(name)
        whole_pages = Sampler(model, kv_bytes=2**17).num_pages
        tensor_parallel(model, mesh)
        sampler = Sampler(model, kv_bytes=2**17)
        with torch.no_grad():
            packed = logits(model)
        found[name] = {
            "answers": answers(model, sampler),
            "logits": packed,
            "heads": model.local_config.num_heads,
            "pages": (whole_pages, sampler.num_pages),
            "can_pack": can_pack(model),
            "bytes": sum(p.to_local().nbytes for p in model.parameters()),
            "plain": [n for n, p in model.named_parameters() if not hasattr(p, "placements")],
        }
    return found


def checksum(found: Any) -> str:
    return hashlib.sha256(repr(found).encode()).hexdigest()


def small_pool(name: str) -> dict[str, Any]:
    """Samples that drive each other out, and prefixes found again."""
    model = model_of(name)
    tensor_parallel(model, device_mesh(2)["tensor"])
    sampler = Sampler(model, kv_bytes=7 * 3584, max_batch_tokens=24)
    first, again = answers(model, sampler), answers(model, sampler)
    scheduler = sampler._scheduler
    return {
        "first": first,
        "again": again,
        "pages": sampler.num_pages,
        "preemptions": scheduler.preemptions,
        "cached": scheduler.cached_tokens,
    }


def gradients(names: list[str]) -> dict[str, dict[str, Tensor]]:
    """Of every parameter, whole and in the order of files."""
    mesh = device_mesh(2)["tensor"]
    found = {}
    for name in names:
        model = model_of(name)
        tensor_parallel(model, mesh)
        loss(model).backward()
        found[name] = {key: model.layout.whole(key, p.grad) for key, p in named(model)}
    return found


def named(model: Model) -> list[tuple[str, Any]]:
    return list(model.named_parameters())


def clipped_norm(name: str) -> float:
    model = model_of(name)
    tensor_parallel(model, device_mesh(2)["tensor"])
    loss(model).backward()
    norm: Any = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return float(norm.full_tensor())


def trains_copies() -> str:
    model = model_of("copies")
    tensor_parallel(model, device_mesh(2)["tensor"])
    return refusal(lambda: loss(model))


def refusal(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return "not refused"


def save_and_load(names: list[str], folder: str) -> dict[str, Any]:
    """Saved by the ranks under the model's name; loaded by the ranks from what one rank had
    saved.
    """
    mesh = device_mesh(2)["tensor"]
    for name in names:
        model = model_of(name)
        tensor_parallel(model, mesh)
        save_model(model, Path(folder, name), max_shard_bytes=20_000)
        empty = empty_model(
            EVERY[name], "cpu", torch.float32, split=lambda m: tensor_parallel(m, mesh)
        )
        empty.load_weights(Path(folder, f"{name} whole"))
        for (key, ours), (_, theirs) in zip(named(model), named(empty), strict=True):
            assert ours.placements == theirs.placements
            assert torch.equal(ours.to_local(), theirs.to_local()), key
    refused = refusal(lambda: tensor_parallel(model, mesh))
    return {"files": sorted(p.name for p in Path(folder).iterdir()), "twice": refused}


def refuses_five_heads() -> dict[str, Any]:
    """And leaves the model as it was."""
    model = random_model(CONFIGS["qwen3"])
    refused = refusal(lambda: tensor_parallel(model, device_mesh(2)["tensor"]))
    plain = all(type(weight) is torch.nn.Parameter for weight in model.parameters())
    return {"refused": refused, "whole": plain and model.parallel is None}


# -------------------------------------------------------------------------------- data parallel


def data_answers(name: str) -> dict[str, Any]:
    group = device_mesh(1)["data"].get_group()
    model = model_of(name)
    sampler, prompts = Sampler(model), prompts_of(model)
    found = generate(sampler, *asked(model), group)
    computed = sampler._scheduler.prefill_tokens
    long = [prompts[0], prompts[1], [1] * 500]
    return {
        "answers": outcome(found),
        "tags": [g.tag for g in found],
        "one": outcome(generate(sampler, prompts[:1], SAMPLED, group)),
        "none": generate(sampler, [], None, group),
        "too long": refusal(lambda: generate(sampler, long, GREEDY, group)),
        "count": refusal(lambda: generate(sampler, prompts, [GREEDY] * 2, group)),
        "computed": computed,
    }


def two_by_two(name: str, fsdp: bool, folder: str) -> dict[str, Any]:
    """Weights over pairs of ranks, prompts over the pairs, and with FSDP weights over both; saved
    as they lie.
    """
    mesh = device_mesh(tensor=2)
    model = model_of(name)
    tensor_parallel(model, mesh["tensor"])
    if fsdp:
        shard(model, mesh["data"])
    group = mesh["data"].get_group()
    with unsharded(model):
        sampler = Sampler(model)
        found = generate(sampler, *asked(model), group)
        if mesh["data"].get_local_rank() == 1:  # steps that the other pair does not take
            sampler.generate(prompts_of(model), SamplingParams(max_tokens=3))
    model.save(folder)
    return {"answers": outcome(found), "data": mesh["data"].get_local_rank()}


def fsdp_rounds(name: str, rounds: int) -> list[dict[str, Any]]:
    """Sample, train, sample again, with the same sampler."""
    group = device_mesh(1)["data"]
    model = model_of(name)
    shard(model, group)
    sharded = {key: p.to_local().numel() for key, p in named(model)}
    found = []
    sampler = Sampler(model)
    for _ in range(rounds):
        with unsharded(model):
            drawn = outcome(generate(sampler, *asked(model), group.get_group()))
            packed = sampler._executor.packed is not None
        assert sharded == {key: p.to_local().numel() for key, p in named(model)}
        found.append({"answers": drawn, "packed": packed, "loss": descend(model)})
    return found


def descend(model: Model) -> float:
    """One plain step downhill, the loss before it."""
    value = loss(model)
    value.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.sub_(weight.grad, alpha=0.02)
            weight.grad = None
    model.touch()
    return float(value.detach())


def sums_alone_and_together() -> bool:
    """Whether a row's sum over all ranks has the same bits alone as among 64."""
    group = device_mesh(tensor=4, device="cpu")["tensor"].get_group()
    generator = torch.Generator().manual_seed(dist.get_rank())
    rows = torch.randn(64, 48, generator=generator)
    together = sum_over_ranks(rows.clone(), group)
    alone = [sum_over_ranks(row[None].clone(), group)[0] for row in rows]
    return torch.equal(together, torch.stack(alone))


def company() -> bool:
    """Whether a prompt's samples on four ranks have the same bits alone and among others."""
    model = random_model(EVERY["four"], std=0.25)
    tensor_parallel(model, device_mesh(tensor=4, device="cpu")["tensor"])
    prompts = random_prompts(model, [3, 17, 40, 64])
    together = outcome(Sampler(model).generate(prompts, SAMPLED))
    return together == [outcome(Sampler(model).generate([p], SAMPLED))[0] for p in prompts]
