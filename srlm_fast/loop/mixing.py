"""What a round learns from beside its own rows: people's answers, and rows of earlier rounds.

A model that learns from its own output alone drifts away from people's text round by round; a share
of original data slows that down (10 % of it in arXiv 2305.17493). `--mix-real F` makes real rows,
those that M1 was taught, a share F of all rows of a round: of N others, F / (1 - F) N, dealt from a
shuffled deck that goes on from round to round. They are SFT rows in the steps of DPO (`train_dpo`),
and under `--reward best-of-n` rows like the others.

`--accumulate yes` keeps the rows of all rounds so far, where the default replaces them by the
round's own; `subsample` draws as many as the round's own from all of them, which keeps the cost
(arXiv 2404.01413 and 2410.16713 compare the three). Under best-of-n these are SFT rows, and the
seeds are the first of them unless `--mix-real` says how many there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from srlm_fast.records import InputError, read_jsonl
from srlm_fast.train import SftRow, TokenPair

from .reference import Reference
from .state import ModelFolder, derive_seed
from .token_rows import best_sft_rows, fitting, taught_rows, token_pairs

if TYPE_CHECKING:
    from .loop import Run

Row = dict[str, Any]
NAMES = ("round", "prompt_id", "chosen_index", "rejected_index")  # of a pair, for its reference
Shown = Callable[[str, int], Any]  # (what, how many) -> a context that takes progress


class Mixing:
    """Of the round that makes the model of `folder`. counts: rows taken so far."""

    def __init__(self, run: Run, folder: ModelFolder) -> None:
        self.run, self.folder = run, folder
        self.earlier = run.folders[1 : folder.number - 1]
        self.accumulates = run.config.accumulate != "no"
        self.counts = {"real": 0, "earlier": 0}

    @property
    def figures(self) -> dict[str, Any]:
        """For the summary; empty where nothing was asked for."""
        asked = self.accumulates or self.run.config.mix_real
        return {"mixed": dict(self.counts)} if asked else {}

    # ------------------------------------------------------------------------ earlier rounds

    def write_references(self, own: int, shown: Shown) -> dict[str, Any]:
        """Log-probs of the earlier pairs that are learnt from, under this round's reference, in a
        file beside the round's own pairs. own: how many those are. Returns the stage's figure.
        """
        if not self.accumulates:
            return {}
        _, rows, pairs = self.union(own)
        if rows:
            with shown("earlier pairs", len(rows)) as progress:
                self.reference().write(rows, pairs, progress)
        return {"earlier": len(rows)}

    def with_earlier(
        self, rows: list[Row], pairs: list[TokenPair]
    ) -> tuple[list[Row], list[TokenPair]]:
        """The pairs that the round learns from, of its own and of earlier rounds, and rows with
        their reference.
        """
        if not self.accumulates:
            return rows, pairs
        path = self.folder.earlier_pairs
        known = self.run.rows_of(self.folder, path, "pairs", "earlier")
        own, found, earlier = self.union(len(pairs))
        found = [old | new for old, new in zip(known, found, strict=True)]
        self.counts["earlier"] = len(earlier)
        rows = [rows[i] for i in own] + self.reference().renewed(found, earlier)
        return rows, [pairs[i] for i in own] + earlier

    def union(self, own: int) -> tuple[list[int], list[Row], list[TokenPair]]:
        """What is learnt from: places of the round's own pairs; of earlier ones rows that name
        them, and tokens.
        """
        rows: list[Row] = []
        pairs: list[TokenPair] = []
        for folder in self.earlier:
            candidates = self.run.rewarding.sampled(folder)
            found = self.run.rows_of(folder, folder.pairs, "pairs", "pairs")
            pairs += token_pairs(self.run.model, found, candidates, folder.pairs)
            rows += [{name: row.get(name) for name in NAMES} for row in found]
        places, kept = self.drawn(own, len(rows))
        return places, [rows[i] for i in kept], [pairs[i] for i in kept]

    def reference(self) -> Reference:
        return Reference(self.run, self.folder, self.folder.earlier_pairs)

    def drawn(self, *counts: int) -> list[list[int]]:
        """Places of the rows learnt from in each of several lists of so many rows, the round's own
        first: all, or under `subsample` as many as that one has, all rows alike.
        """
        places = [(part, i) for part, count in enumerate(counts) for i in range(count)]
        if self.run.config.accumulate == "subsample":
            draw = random.Random(self.run.seed(self.folder.name, "accumulate"))
            places = sorted(draw.sample(places, counts[0]))
        return [[i for part, i in places if part == which] for which in range(len(counts))]

    # ----------------------------------------------------------------------------- real rows

    def real(self, others: int) -> list[SftRow]:
        """The real rows of a round that learns from so many others."""
        share = self.run.config.mix_real
        if not share:
            return []
        seeds = self.seeds()
        count = max(1, round(share / (1 - share) * others))
        stages = (self.run.state.figures[folder.stage("train")] for folder in self.earlier)
        start = sum(figures["mixed"]["real"] for figures in stages)
        self.counts["real"] = count
        return [seeds[i] for i in dealt(len(seeds), start, count, self.run.seed("mix real"))]

    def seeds(self) -> list[SftRow]:
        """What M1 was taught, instructions and judgements."""
        run, first = self.run, self.run.folders[0]
        taught, texts = run.state.figures[first.stage("train")], read_jsonl(first.sft)
        if "rows" not in taught:
            raise InputError("--mix-real: found no row that M1 was taught, wanted --ift or --eft")
        wanted = taught["rows"] + taught["too_long"]
        if len(texts) != wanted:
            raise InputError(f"{first.sft}: found {len(texts)} rows, wanted the {wanted} of M1")
        return fitting(taught_rows(run.model, texts), run.model.config.max_position_embeddings)

    # ----------------------------------------------------------------------------- best of n

    def best_rows(self) -> list[SftRow]:
        """Under best-of-n: the best answers of the round, of earlier ones, and real rows."""
        folders = self.earlier if self.accumulates else []
        earlier = [row for folder in folders for row in self.best_of(folder)]
        parts = [self.best_of(self.folder), earlier, self.seeds() if self.taught_again else []]
        places = self.drawn(*map(len, parts))
        kept = [[part[i] for i in each] for part, each in zip(parts, places, strict=True)]
        self.counts = {"real": len(kept[2]), "earlier": len(kept[1])}
        rows = [row for part in kept for row in part]
        return rows + self.real(len(rows))

    @property
    def taught_again(self) -> bool:
        """Whether the seeds are rows of an earlier round."""
        run = self.run
        taught = "rows" in run.state.figures[run.folders[0].stage("train")]
        return taught and self.accumulates and not run.config.mix_real

    def best_of(self, folder: ModelFolder) -> list[SftRow]:
        run = self.run
        best = run.rows_of(folder, folder.sft, "pairs", "sft_rows")
        return best_sft_rows(run.model, best, run.rewarding.sampled(folder))


def dealt(size: int, start: int, count: int, seed: int) -> list[int]:
    """`count` cards from place `start` on of a deck of `size`, shuffled anew whenever it is used
    up.
    """
    cards: list[int] = []
    for deal in range(start // size, -(-(start + count) // size)):
        cards += random.Random(derive_seed(seed, "deal", deal)).sample(range(size), size)
    begin = start % size
    return cards[begin : begin + count]
