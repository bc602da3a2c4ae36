"""The mesh, and what it refuses before anything waits for other ranks."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.dist import device_mesh

from . import cases
from .processes import Ranks


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of one of four ranks, of which no other is there."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")


def test_neighbours_share_weights(four_ranks: Ranks):
    assert four_ranks(cases.coordinates) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("tensor", [0, 3, 8])
def test_ranks_that_do_not_divide_are_named(torchrun: None, tensor: int):
    with pytest.raises(ValueError) as error:
        device_mesh(tensor)
    assert str(error.value) == f"tensor: {tensor}, wanted a divisor of the run's 4 ranks"


def test_without_torchrun_the_missing_variables_are_named(
    torchrun: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ValueError, match="^MASTER_PORT: not set; start the run with torchrun$"):
        device_mesh()


def test_a_device_that_is_not_there_is_refused(torchrun: None, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="^device: 'tpu', wanted 'cpu' or 'cuda'$"):
        device_mesh(device="tpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="^LOCAL_RANK: 1, but this machine has 1 CUDA devices$"):
        device_mesh(device="cuda")


def test_an_error_of_one_rank_is_raised_here(two_ranks: Ranks):
    for _ in range(2):  # new ranks take the place of those that were stopped
        with pytest.raises(RuntimeError, match="rank 1 has had enough"):
            two_ranks(cases.fails_on_rank_1)
        assert two_ranks(cases.its_rank) == [0, 1]
