"""The compiled extension `srlm_fast._native` (csrc/), loaded on first use."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor


@cache
def _load() -> ModuleType | ImportError:
    try:
        return import_module("srlm_fast._native")
    except ImportError as error:
        return error


def native() -> ModuleType:
    """The extension. Raises ImportError saying how to build it."""
    module = _load()
    if isinstance(module, ImportError):
        raise ImportError(
            f"srlm_fast._native cannot be loaded ({module}); wanted a compiled extension: "
            "run `pip install -e .` or `python setup.py build_ext --inplace` with a C++17 compiler"
        )
    return module


def available() -> bool:
    """Whether the extension can be loaded."""
    return not isinstance(_load(), ImportError)


def runs_natively(*tensors: Tensor) -> bool:
    """Whether the extension's row operations take these: plain fp32 or bf16 tensors on the CPU."""
    return available() and all(
        type(x) in (Tensor, torch.nn.Parameter)  # a subclass may have no address
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        for x in tensors
    )
