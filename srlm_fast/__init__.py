"""Self-rewarding language models: one set of weights generates, judges and trains.

The public names below are loaded when they are first used, so that `import srlm_fast` and
`python -m srlm_fast.run --help` cost milliseconds and touch no device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from srlm_fast.model import load_model
    from srlm_fast.sampler import Generation, Sample, Sampler, SamplingParams

__version__ = "0.1.0"
__all__ = ["Generation", "Sample", "Sampler", "SamplingParams", "__version__", "load_model"]

_HOMES = {
    "load_model": "srlm_fast.model",
    "Sampler": "srlm_fast.sampler",
    "SamplingParams": "srlm_fast.sampler",
    "Generation": "srlm_fast.sampler",
    "Sample": "srlm_fast.sampler",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'srlm_fast' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
