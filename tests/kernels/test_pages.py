"""Memory given back early."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from srlm_fast.kernels.pages import WORTH_A_MAPPING, Pages

CPU = torch.device("cpu")


def resident() -> tuple[float, float]:
    """MiB of this process: of its own, and of shared memory."""
    text = Path("/proc/self/status").read_text()
    anonymous, shared = (
        int(re.search(rf"{key}:\s*(\d+)", text)[1]) / 1024 for key in ("RssAnon", "RssShmem")
    )
    return anonymous, shared


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_released_elements_leave_memory_and_the_others_stay():
    before, shared = resident()
    pages = Pages(32 << 20, torch.bfloat16, CPU)
    pages.elements.fill_(1.0)
    full, _ = resident()
    assert 62 < full - before < 80 and resident()[1] == shared
    pages.release(8 << 20, 24 << 20)
    assert 28 < resident()[0] - before < 45
    assert bool((pages.elements[: 8 << 20] == 1).all() and (pages.elements[24 << 20 :] == 1).all())
    del pages
    assert resident()[0] - before < 24


def test_a_released_range_spares_the_pages_it_shares():
    """Ends within a page: what stands beside them in it is not touched."""
    pages = Pages(WORTH_A_MAPPING // 4, torch.float32, CPU)
    pages.elements.fill_(3.0)
    pages.release(1000, 5000)
    assert bool((pages.elements[:1000] == 3).all() and (pages.elements[5000:] == 3).all())
    pages.release(10, 20)
    assert bool((pages.elements[:1000] == 3).all())


def test_little_memory_is_the_allocators():
    pages = Pages(24, torch.float64, CPU)
    pages.elements.fill_(2.0)
    pages.release(0, 24)
    assert pages.elements.shape == (24,) and bool((pages.elements == 2).all())
