"""What the ranks of a test train: the same small models and rows as one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from srlm_fast.dist import device_mesh, reshard, shard, tensor_parallel, unsharded
from srlm_fast.model import Model, ModelConfig, weights
from srlm_fast.model.decoder import Model as Decoder
from srlm_fast.model.reward_model import with_score_head
from srlm_fast.sampler import Sampler
from srlm_fast.train import (
    DpoConfig,
    RewardConfig,
    RewardPair,
    SftConfig,
    TrainingInterrupted,
    pair_logps,
    train_dpo,
    train_reward_model,
    train_sft,
)
from srlm_fast.train.sft import SftTask
from tests.dist import cases
from tests.sampler.helpers import outcome
from tests.train.helpers import make_pairs, make_rows

FAMILY = "qwen3"  # norms of heads, four of each; an odd share of the vocabulary for three ranks
SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "weight_decay": 0.1, "warmup_steps": 2}
LAYOUTS = {"copies": (1, False), "fsdp": (1, True), "tensor": (2, False), "both": (2, True)}


def made(layout: str, dtype: torch.dtype, change: str = "") -> tuple[Model, Any]:
    """A model split as `layout` says, and the mesh; of this process alone for "one"."""
    model = cases.model_of(FAMILY).to(dtype)
    if change == "frozen":  # all but what writes to the residual stream
        for name, weight in model.named_parameters():
            weight.requires_grad_(".o." in name or ".down." in name)
    tensor, sharded = LAYOUTS.get(layout, (1, False))
    mesh = None if layout == "one" else device_mesh(tensor, "cpu")
    if mesh is not None and tensor > 1:
        tensor_parallel(model, mesh["tensor"])
    if change == "reward":
        model = with_score_head(model, 3)
    if mesh is not None and sharded:
        shard(model, mesh["data"])
    return model, mesh


def steps(kind: str, model: Model, items: int = 19, **keep: Any) -> Any:
    """Three steps: two of eight items, one of what is left."""
    config: dict[str, Any] = SETTINGS | {"micro_batch_tokens": keep.pop("micro", 40)}
    # Which prompts meet depends on how a batch is cut, and with it the tokens fed.
    config |= {"share_prompts": keep.pop("share", False)}
    config |= {"eps": keep.pop("eps", 1e-8)}
    if kind in ("sft", "dropout"):
        config |= {"dropout": 0.1 if kind == "dropout" else 0.0}
        return train_sft(model, make_rows(items), SftConfig(**config, batch_rows=8), **keep)
    pairs = make_pairs(items)
    if kind != "reward":
        real = make_rows(5, seed=4) if kind == "mixed" else []
        return train_dpo(model, pairs, DpoConfig(**config, batch_pairs=8), real=real, **keep)
    rewards = [RewardPair(p.chosen_ids, p.rejected_ids, p.weight, p.label, 0.1) for p in pairs]
    return train_reward_model(model, rewards, RewardConfig(**config, batch_pairs=8), **keep)


def whole(model: Model) -> dict[str, torch.Tensor]:
    """The weights as files have them."""
    named = model.named_parameters()
    if model.layout is None:
        return {name: weight.detach().clone() for name, weight in named}
    return {name: model.layout.whole(name, weight).clone() for name, weight in named}


def told(report: Any) -> dict[str, list[float]]:
    """What all ranks must agree about."""
    names = ("losses", "grad_norms", "num_tokens", "margins", "accuracies", "real_nlls")
    return {name: getattr(report, name) for name in names} | {"skipped": [report.skipped_steps]}


def trained(kind: str, layout: str, items: int = 19, dtype: str = "float64", **keep: Any) -> Any:
    model, mesh = made(layout, getattr(torch, dtype), kind)
    report = steps(kind, model, items, mesh=mesh, **keep)
    return {"told": told(report), "weights": whole(model)}


def several(calls: list[tuple[Any, ...]]) -> list[Any]:
    """Trainings one after the other."""
    return [trained(*call) for call in calls]


def in_bf16(layout: str) -> dict[str, Any]:
    """With masters; and the dtype of what was trained."""
    found = trained("dpo", layout, dtype="bfloat16")
    return found | {"dtypes": {weight.dtype for weight in found["weights"].values()}}


def logps(layout: str) -> Any:
    """Twice, for what a forward leaves behind."""
    model, mesh = made(layout, torch.float64)
    found = [pair_logps(model, make_pairs(11), micro_batch_tokens=30, mesh=mesh) for _ in range(2)]
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    return found[0]


def train_and_sample(layout: str) -> Any:
    """Greedy text before and after training, from the same tensors."""
    model, mesh = made(layout, torch.float32)
    found = []
    for round_ in range(2):
        if round_:
            # Adam divides a gradient by its own size, one that is nothing but rounding too.
            steps("dpo", model, mesh=mesh, micro=60, eps=1e-5)
        with unsharded(model):
            drawn = Sampler(model).generate(cases.prompts_of(model), cases.GREEDY)
        found.append([[ids for ids, _, _ in samples] for samples in outcome(drawn)])
    return {"texts": found, "weights": whole(model)}


# ------------------------------------------------------------------------- stop, resume, skip


def until(count: int, rank: int) -> Callable[[], bool]:
    """A stop that one rank alone is told, after so many steps."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None and (rank < 0 or dist.get_rank() == rank)


def stopped(kind: str, layout: str, path: str, count: int, rank: int = -1) -> str:
    model, mesh = made(layout, torch.float64)
    try:
        steps(kind, model, mesh=mesh, checkpoint=Path(path), stop=until(count, rank))
    except TrainingInterrupted as error:
        return str(error)
    return "not stopped"


def resumed(kind: str, layout: str, path: str) -> dict[str, Any]:
    """The rest, from other weights than the checkpoint's."""
    model, mesh = made(layout, torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    seen: list[int] = []
    report = steps(
        kind,
        model,
        mesh=mesh,
        checkpoint=Path(path),
        on_step=lambda step: seen.append(step.step),
    )
    return {"told": told(report), "weights": whole(model), "seen": seen}


def refusals() -> list[str]:
    """No mesh, other dimensions, parts of a model."""
    model, mesh = made("fsdp", torch.float32)
    scored = with_score_head(model, 3)
    return [
        cases.refusal(lambda: steps("sft", model)),
        cases.refusal(lambda: steps("sft", model, mesh=mesh["data"])),
        cases.refusal(lambda: steps("reward", scored, mesh=mesh)),
    ]


def infinite_gradient(layout: str, broken_rank: int) -> dict[str, Any]:
    """The second step's gradient, not its loss, is infinite on one rank."""
    objective, calls = SftTask.objective, [0]

    def broken(self: SftTask, model: Model, micro_batch: Any) -> Any:
        loss, sums = objective(self, model, micro_batch)
        calls[0] += 1
        if calls[0] == 2 and dist.get_rank() == broken_rank:
            loss = loss + (loss - loss.detach()).sqrt()
        return loss, sums

    SftTask.objective = broken  # type: ignore[method-assign]
    try:
        return trained("sft", layout, micro=1000)
    finally:
        SftTask.objective = objective  # type: ignore[method-assign]


# ------------------------------------------------------------------------------- weights, shapes


class Counted:
    """A tensor on disk that counts the elements read from it."""

    def __init__(self, stored: Any, read: list[int]) -> None:
        self.stored, self.read = stored, read

    def get_shape(self) -> list[int]:
        return self.stored.get_shape()

    def __getitem__(self, box: Any) -> torch.Tensor:
        found = self.stored[box]
        self.read.append(found.numel())
        return found


def load_in_place(layout: str, folder: str) -> dict[str, Any]:
    """Weights of `folder` into tensors that are split already; then saved as `ours`."""
    model, _ = made(layout, torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    read: list[int] = []
    opened = weights.tensors_of
    weights.tensors_of = lambda files: ((a, b, Counted(c, read)) for a, b, c in opened(files))
    try:
        model.load_weights(Path(folder, "theirs"))
    finally:
        weights.tensors_of = opened
    held = sum(weight.to_local().numel() for _, weight in cases.named(model))
    with unsharded(model):
        refused = cases.refusal(lambda: model.load_weights(Path(folder, "theirs")))
    reshard(model)
    model.save(Path(folder, "ours"))
    return {"read": sum(read), "held": held, "refused": refused}


def seventy_billion(layers: int) -> dict[str, int]:
    """Bytes of rank 0 of 16, tensor 8 and data 2, at the shapes of Llama-2-70B."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=16, store=FakeStore())
    try:
        config = ModelConfig("llama", 32000, 8192, 28672, layers, 64, 8, 128)
        with torch.device("meta"):
            model = Decoder(config).to(torch.bfloat16)
        every = sum(weight.nbytes for weight in model.parameters())
        mesh = device_mesh(8)
        tensor_parallel(model, mesh["tensor"])
        shard(model, mesh["data"])
        named = cases.named(model)
        held = sum(weight.to_local().nbytes for _, weight in named)
        boxes = [box for name, w in named for _, box in model.layout.pieces(name, w)]
        return {"every": every, "held": held, "pieces": sum(box.nbytes for box in boxes)}
    finally:
        dist.destroy_process_group()
