"""The two models that are compared, by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from srlm_fast.run_models import ModelAt

Models = Mapping[str, ModelAt]


def shared_run(models: Models) -> Path | None:
    """The run that both are of."""
    runs = {at.run for at in models.values()}
    return runs.pop() if len(runs) == 1 else None


def all_tiny(models: Models) -> bool:
    return all(at.is_tiny for at in models.values())
