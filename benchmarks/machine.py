"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from srlm_fast.config import versions


def cpu_name() -> str:
    """The processor as Linux names it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def conditions(command: str) -> dict[str, Any]:
    """The command, the processor and the versions, as the result files keep them."""
    return {
        "command": command,
        "device": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": versions(),
    }
