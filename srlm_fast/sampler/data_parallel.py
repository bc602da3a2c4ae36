"""Prompts split over ranks that each hold all the weights (or a tensor group's share of them)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from .engine import Sampler
from .generation import Generation
from .params import SamplingParams


def generate(
    sampler: Sampler,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] | None,
    group: dist.ProcessGroup | None,
) -> list[Generation]:
    """`sampler.generate` by the ranks of a group: all of its generations, in the order of the
    prompts, on every rank.

    All ranks call it with the same prompts and params. What is drawn depends on the request alone,
    so the number of ranks changes nothing. Raises on every rank what was raised on one.
    """
    every = params if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
    if isinstance(prompts, str) or len(every) != len(prompts):
        return sampler.generate(prompts, params)  # which refuses it, on every rank
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    mine = share(prompts, every, ranks, rank)
    own: Any = [prompts[i] for i in mine]
    result: Any
    try:
        result = sampler.generate(own, [every[i] for i in mine])
    except ValueError as error:
        result = ValueError(_with_own_number(str(error), mine))
    except Exception as error:  # in words: not every exception can be sent
        result = RuntimeError(f"rank {rank}: {type(error).__name__}: {error}")
    results: list[Any] = [None] * ranks
    dist.all_gather_object(results, (mine, result), group=group)
    out: dict[int, Generation] = {}
    for indices, found in results:
        if isinstance(found, Exception):
            raise found
        out |= {i: replace(g, tag=i) for i, g in zip(indices, found, strict=True)}
    return [out[i] for i in range(len(prompts))]


def _with_own_number(message: str, mine: list[int]) -> str:
    """A message about the k-th prompt of this rank, with its number among all."""
    return re.sub(r"^prompts\[(\d+)\]", lambda found: f"prompts[{mine[int(found[1])]}]", message)


def share(
    prompts: Sequence[Any], params: Sequence[SamplingParams], ranks: int, rank: int
) -> list[int]:
    """Which prompts a rank takes: dealt out by turns from the most work to the least, then in the
    order of the prompts, in which those that follow each other share most.
    """

    def work(i: int) -> tuple[int, int]:
        return params[i].n * params[i].max_tokens, len(prompts[i])

    dealt = sorted(range(len(prompts)), key=work, reverse=True)
    return sorted(dealt[rank::ranks])
