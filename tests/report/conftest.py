from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.report.folders import make_folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(num_prompts, hostile) -> a finished run folder."""
    return partial(make_folder, tmp_path / "tiny-2026-01-01")
