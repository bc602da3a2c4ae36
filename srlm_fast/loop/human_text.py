"""How likely a model finds what people wrote: held-out answers that no model of the run learns
from.

A model that feeds on its own output forgets the rare first: the perplexities of human text grow a
tail, whatever its own answers look like (arXiv 2305.17493).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from srlm_fast.data import same_text
from srlm_fast.judge import DEFAULT_RUBRIC
from srlm_fast.model import Model
from srlm_fast.records import Prompt
from srlm_fast.train import row_logps

from .token_rows import fitting, sft_rows

if TYPE_CHECKING:
    from .material import Material

MOST_ROWS = 256
ROWS_AT_A_TIME = 32
APART_SHARE, MOST_APART = 0.05, 64  # of the instruction seed, where nothing else is held out
NOTE = (
    "{} of the {} rows of --ift are put apart as human text, whose perplexity is watched "
    "(--human-text FILE gives other text)"
)
BINS_PER_OCTAVE, OCTAVES = 2, 14  # of the histogram; its last bin has no end
LARGEST = 700.0  # nats per token, whose exponential is still a float

Row = dict[str, Any]
T = TypeVar("T")


def split_human_text(
    material: Material, given: Sequence[Row], seeds: Sequence[Row], seed: int
) -> Material:
    """The material with human text in it, none of which is among the instructions to learn from.

    That text is, at most 256 rows of it: what is given; else what is held out anyhow, which are the
    rows of `seeds` (all of the user's) that are not learnt from, and the best of the ranked answers
    that the judge is measured on; else a share of the seeds, put apart for it.
    """
    text, notes = list(given) or held_out_text(material, seeds), material.remarks
    if not text and (text := put_apart(material.ift, seed)):
        notes = [*notes, NOTE.format(len(text), len(material.ift))]
    text = spread(text)
    apart = {conversation(row) for row in text}
    ift = [row for row in material.ift if conversation(row) not in apart]
    return replace(material, ift=ift, human_text=text, remarks=notes)


def held_out_text(material: Material, seeds: Sequence[Row]) -> list[Row]:
    """One answer to each prompt."""
    taught = {conversation(row) for row in material.ift}
    rows = [best_answer(row) for row in material.eft_eval]
    rows += [row for row in seeds if conversation(row) not in taught]
    return list({conversation(row): row for row in rows}.values())


def conversation(row: Row) -> str:
    """The same for rows that ask the same, but for case and white space."""
    return same_text(Prompt("", row["prompt"], "seed", row.get("turns") or ()).conversation)


def put_apart(rows: Sequence[Row], seed: int) -> list[Row]:
    """A twentieth of the rows, at most 64."""
    count = min(round(len(rows) * APART_SHARE), MOST_APART)
    return random.Random(seed).sample(list(rows), count)


def best_answer(ranked: Mapping[str, Any]) -> Row:
    """As a row of IFT, from a row of ranked answers (`records.AskedRow`)."""
    best = ranked["responses"][np.argmax(ranked["scores"])]
    found = {"prompt": ranked.get("text", ranked["prompt"]), "response": best}
    return found | ({"turns": ranked["turns"]} if ranked.get("turns") else {})


def spread(rows: Sequence[T], most: int = MOST_ROWS) -> list[T]:
    """At most `most` of the rows, evenly spread."""
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def human_text_figures(
    model: Model,
    rows: Sequence[Row],
    micro_batch_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
    **over_mesh: Any,
) -> dict[str, Any] | None:
    """Perplexities of the rows' responses behind their prompts in the chat template, the end token
    included; None where no row fits the model's context.

    perplexity: exp of the mean of -log p over all tokens. perplexity_p95 and histogram are of the
    rows' own perplexities: the 95th percentile, and [lower edge, count] of bins from 1 to 2^14,
    two for each doubling, the last one open. A perplexity that is not finite counts there, and
    makes the other two None. n: rows; tokens: of their responses. progress: told how many rows are
    done, those that do not fit included.
    """
    _, tokenized = sft_rows(model, DEFAULT_RUBRIC, rows, ())
    kept = fitting(tokenized, model.config.max_position_embeddings)
    if not kept:
        return None
    left_out, found = len(rows) - len(kept), []
    for start in range(0, len(kept), ROWS_AT_A_TIME):
        part = kept[start : start + ROWS_AT_A_TIME]
        found.append(row_logps(model, part, micro_batch_tokens=micro_batch_tokens, **over_mesh))
        progress(left_out + start + len(part))
    nats = -torch.cat(found).double().numpy()
    tokens = np.array([len(row.response_ids) for row in kept])
    each = np.exp(np.nan_to_num(nats / tokens, nan=LARGEST, posinf=LARGEST).clip(max=LARGEST))
    finite = bool(np.isfinite(nats).all())
    return {
        "perplexity": math.exp(min(nats.sum() / tokens.sum(), LARGEST)) if finite else None,
        "perplexity_p95": float(np.quantile(each, 0.95)) if finite else None,
        "n": len(kept),
        "tokens": int(tokens.sum()),
        "histogram": histogram(each.tolist()),
    }


def histogram(perplexities: Sequence[float]) -> list[list[float]]:
    last = BINS_PER_OCTAVE * OCTAVES
    places = [min(last, int(BINS_PER_OCTAVE * math.log2(max(x, 1.0)))) for x in perplexities]
    counts = np.bincount(np.array(places, dtype=np.int64), minlength=last + 1).tolist()
    return [[2 ** (place / BINS_PER_OCTAVE), count] for place, count in enumerate(counts)]
