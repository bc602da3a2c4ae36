"""Runs to export from: a tiny one that made M1 and M2, and one whose M1 is an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from srlm_fast import run_folder
from srlm_fast.config import versions
from srlm_fast.export.__main__ import main
from srlm_fast.loop import run
from srlm_fast.model import LoraConfig, Model, PackedContext, add_lora, load_model, lora_parameters
from tests.commands import complaint_of
from tests.loop.worlds import Silent, small_config

SIZES = {
    "iterations": 1,
    "reward": "gold",
    "num_ift": 24,
    "num_eft": 2,
    "sft.epochs": 1,
    "num_prompts": 12,
    "evaluation.num_prompts": 4,
    "evaluation.samples": 1,
    "evaluation.num_judged": 4,
}


@pytest.fixture(scope="session")
def made(made_once) -> Path:
    return made_once("export", make_run) / "tiny run"


def make_run(folder: Path) -> None:
    out = folder / "tiny run"
    out.mkdir()
    config = small_config(out, **SIZES)
    run_folder.write_config(out, config.to_json(), versions())
    run(config, Silent())


@pytest.fixture(scope="session")
def adapted(made_once) -> Path:
    """The folder of a run with an adapter that does something, and no figures."""
    return made_once("adapted", adapt) / "run"


def adapt(folder: Path) -> None:
    out = folder / "run"
    out.mkdir()
    config = small_config(out, **{"lora.rank": 3, "lora.alpha": 6.0, "iterations": 0})
    run_folder.write_config(out, config.to_json(), versions())
    model = add_lora(load_model("tiny"), LoraConfig(3, 6.0), seed=1)
    draw = torch.Generator().manual_seed(2)
    for name, factor in lora_parameters(model):
        if name.endswith(".B"):
            factor.data.normal_(0, 0.05, generator=draw)
    model.save(out / "m1" / "model")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def complaint(capsys) -> Callable[..., str]:
    return complaint_of(main, capsys)


@pytest.fixture
def export() -> Callable[..., None]:
    def exported(*argv: object) -> None:
        assert main([str(word) for word in argv]) == 0

    return exported


def logits_of(model: Model, ids: list[int]) -> torch.Tensor:
    """[T, V] of a model as we compute it."""
    context = PackedContext([len(ids)], model.config.windows)
    with torch.inference_mode():
        return model.logits(model(torch.tensor(ids), context.positions, context)).float()
