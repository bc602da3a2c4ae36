"""Sampling with the live weights: paged keys and values, continuous batching, noise that knows no
neighbours.
"""

from .engine import Sampler
from .generation import Generation, Progress, Request, Sample, Statistics
from .params import SamplingParams

__all__ = ["Generation", "Progress", "Request", "Sample", "Sampler", "SamplingParams", "Statistics"]
