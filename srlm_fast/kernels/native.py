"""The compiled extension `srlm_fast._native` (csrc/), loaded on first use."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType


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
