"""Many ranks train what one process trains."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from srlm_fast.train import remove_checkpoint
from srlm_fast.train.ranks import share

from . import cases, training
from .conftest import started
from .processes import Ranks

KINDS = ("sft", "dpo", "mixed", "reward", "frozen")


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Each kind of training in this process; 1 x 8: a micro-batch for every item."""
    return {kind: training.trained(kind, "one", micro=1) for kind in KINDS}


@pytest.fixture(scope="module")
def one_rank() -> Iterator[Ranks]:
    yield from started(1)


def assert_same(found: dict[str, Any], wanted: dict[str, Any], close: float = 1e-10) -> None:
    """Reports and weights; counts exactly."""
    ours, theirs = found["told"], wanted["told"]
    for name in ("num_tokens", "skipped", "accuracies"):
        assert ours[name] == theirs[name], name
    for name in ("losses", "grad_norms", "margins", "real_nlls"):
        assert ours[name] == pytest.approx(theirs[name], rel=close, abs=close), name
    assert_close(found["weights"], wanted["weights"], close)


def assert_close(found: dict[str, Any], wanted: dict[str, Any], close: float) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, wanted[name], atol=close, rtol=0, msg=name)


@pytest.mark.parametrize("layout", ["copies", "fsdp", "tensor"])
def test_two_ranks_train_as_one(two_ranks: Ranks, alone: dict[str, Any], layout: str):
    for found in two_ranks(training.several, [(kind, layout) for kind in KINDS]):
        for kind, one in zip(KINDS, found, strict=True):
            assert_same(one, alone[kind])


def test_tensor_ranks_drop_the_same(two_ranks: Ranks):
    wanted = training.trained("dropout", "one")
    for found in two_ranks(training.trained, "dropout", "tensor"):
        assert_same(found, wanted)


@pytest.mark.parametrize("layout", ["copies", "fsdp", "both"])
def test_four_ranks_train_as_one(four_ranks: Ranks, alone: dict[str, Any], layout: str):
    """The last batch of an epoch has fewer items than there are ranks."""
    first, *others = four_ranks(training.several, [("sft", layout), ("dpo", layout)])
    for kind, one in zip(("sft", "dpo"), first, strict=True):
        assert_same(one, alone[kind])
    for other in others:
        assert [one["told"] for one in other] == [one["told"] for one in first]


def test_the_reference_is_the_start_on_ranks_too(four_ranks: Ranks):
    wanted = training.logps("one")
    for layout in ("fsdp", "both"):
        for found in four_ranks(training.logps, layout):
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_masters_of_bf16_weights(two_ranks: Ranks):
    wanted = training.in_bf16("one")
    for layout in ("fsdp", "tensor"):
        for found in two_ranks(training.in_bf16, layout):
            assert found["dtypes"] == {torch.bfloat16}
            assert found["told"]["losses"][0] == pytest.approx(
                wanted["told"]["losses"][0], abs=2e-3
            )
            assert found["told"]["losses"] == pytest.approx(wanted["told"]["losses"], abs=2e-2)


def test_text_after_training_is_that_of_one_process(four_ranks: Ranks):
    wanted = training.train_and_sample("one")
    assert wanted["texts"][0] != wanted["texts"][1]
    for found in four_ranks(training.train_and_sample, "both"):
        assert found["texts"] == wanted["texts"]
        assert_close(found["weights"], wanted["weights"], 5e-7)


def test_data_ranks_drop_what_they_will_and_stay_alike(two_ranks: Ranks):
    wanted = training.trained("dropout", "one")
    for layout in ("copies", "fsdp"):
        first, second = two_ranks(training.trained, "dropout", layout)
        assert_same(first, second, 0.0)
        assert first["told"]["losses"] != pytest.approx(wanted["told"]["losses"], rel=1e-6)


@pytest.mark.parametrize("layout", ["copies", "fsdp"])
def test_an_infinite_gradient_on_one_rank_is_skipped_by_all(two_ranks: Ranks, layout: str):
    first, second = two_ranks(training.infinite_gradient, layout, 1)
    assert first["told"]["skipped"] == second["told"]["skipped"] == [1]
    assert all(torch.isfinite(weight).all() for weight in first["weights"].values())
    assert_close(first["weights"], second["weights"], 0.0)


def test_a_mesh_that_does_not_fit_is_refused(two_ranks: Ranks):
    for found in two_ranks(training.refusals):
        assert found == [
            "mesh: None, but the weights are split; wanted the mesh they lie on",
            "mesh: dimensions ('data',), wanted ('data', 'tensor')",
            "model: only parts of it are sharded; wanted dist.shard(model, mesh)",
        ]


# ------------------------------------------------------------------------------ checkpoints


def copied(path: Path, name: str) -> Path:
    """A checkpoint under another folder."""
    to = path.parent.with_name(name)
    shutil.copytree(path.parent, to)
    return to / path.name


@pytest.fixture(scope="module")
def stops(two_ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two steps, by how they were written; a stop is told to the second rank."""
    folder = tmp_path_factory.mktemp("stops")
    paths = {}
    for layout in ("one", "fsdp", "tensor"):
        paths[layout] = folder / layout / "c.pt"
        paths[layout].parent.mkdir()
        if layout == "one":
            found = [training.stopped("dpo", layout, str(paths[layout]), 2)]
        else:
            found = two_ranks(training.stopped, "dpo", layout, str(paths[layout]), 2, 1)
        assert found == ["stopped before step 2 of 3"] * len(found)
    return paths


@pytest.mark.parametrize("written", ["one", "fsdp", "tensor"])
def test_any_ranks_go_on_from_any_others(
    two_ranks: Ranks, four_ranks: Ranks, alone, stops, written: str
):
    runs = {"one": None, "fsdp": two_ranks, "tensor": two_ranks, "copies": two_ranks}
    runs["both"] = four_ranks
    for layout, ranks in runs.items():
        path = copied(stops[written], f"{written} {layout}")
        args = ("dpo", layout, str(path))
        for found in [training.resumed(*args)] if ranks is None else ranks(training.resumed, *args):
            assert found["seen"] == [2]
            assert_same(found, alone["dpo"])
        folders = [one for one in path.parent.iterdir() if one.is_dir()]
        assert len(folders) == (layout != "one")
        remove_checkpoint(path)
        assert list(path.parent.iterdir()) == []


def test_a_checkpoint_half_written_leaves_the_one_before(stops, alone, two_ranks: Ranks):
    """What a killed save leaves: a folder that no file names."""
    path = copied(stops["fsdp"], "half")
    (named,) = [one for one in path.parent.iterdir() if one.is_dir()]
    other = path.with_name(path.name + (".0" if named.name.endswith("1") else ".1"))
    other.mkdir()
    (other / "__0_0.distcp").write_bytes(b"torn")
    for found in two_ranks(training.resumed, "dpo", "fsdp", str(path)):
        assert_same(found, alone["dpo"])
    assert [one.name for one in path.parent.iterdir() if one.is_dir()] == [other.name]


# ------------------------------------------------------------------------- weights and shapes


@pytest.mark.parametrize("layout", ["fsdp", "both"])
def test_a_rank_reads_what_it_holds_and_files_are_those_of_one(
    four_ranks: Ranks, tmp_path: Path, layout: str
):
    cases.model_of(training.FAMILY).save(tmp_path / "theirs")
    for found in four_ranks(training.load_in_place, layout, str(tmp_path)):
        assert found["read"] == found["held"]
        assert "outside dist.unsharded" in found["refused"]
    for file in ("model.safetensors", "config.json"):
        ours, theirs = (tmp_path / name / file for name in ("ours", "theirs"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_seventy_billion_parameters_on_sixteen_ranks(one_rank: Ranks):
    (found,) = one_rank(training.seventy_billion, 2)
    assert found["every"] > 2 * 855e6 * 2  # two layers of 80, in bf16
    assert found["pieces"] == found["held"] == pytest.approx(found["every"] / 16, rel=1e-3)


# ------------------------------------------------------------------------------------ shares


def test_items_are_dealt_from_the_longest():
    lengths = np.array([9, 1, 7, 1, 8])
    assert [own.tolist() for own in share(lengths, 2)] == [[0, 1, 3], [2, 4]]
    assert [len(own) for own in share(lengths, 7)] == [1, 1, 1, 1, 1, 0, 0]
    many = np.random.default_rng(0).integers(1, 500, 200)
    tokens = [int(many[own].sum()) for own in share(many, 8)]
    assert sum(tokens) == many.sum() and max(tokens) - min(tokens) < 10
