"""`--reward constitution`: answers, critiques and revisions in one running batch.

A prompt's answer, once there, asks for its critique, the critique for the revision, and so on; each
request joins the batch that is still sampling others. The chain of a prompt is written when it has
ended: its answers are rows of `candidates.jsonl` (0 is the original, k the k-th revision; `logprob`
is that of the text it was written behind), its critiques are one row of `revisions.jsonl`.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from srlm_fast.judge import Principle, critique_text, revision_text
from srlm_fast.model import chat
from srlm_fast.records import Candidate, InputError, Prompt, read_jsonl
from srlm_fast.sampler import Generation, Request, Sampler, SamplingParams

from .answers import make_candidate, read_records
from .ranks import ALONE, Ranks
from .row_stage import RowStage
from .state import derive_seed


@dataclass(frozen=True)
class Chain:
    """What became of one prompt.

    critiques: for each step the number of its `principle`, the `critique` and its `finish_reason`.
    candidates: rows that it has in `candidates.jsonl`. reason: why there is no pair, None where
    there is one: "too_long" for the context, "empty" or "cut" (by the token limit) revision,
    "identical" with the original.
    """

    prompt_id: str
    candidates: int
    critiques: tuple[dict[str, Any], ...]
    reason: str | None


@dataclass(frozen=True)
class _Open:
    """A chain that is not ended; `critique` is True while one is written."""

    prompt: Prompt
    answers: tuple[Candidate, ...] = ()
    critiques: tuple[dict[str, Any], ...] = ()
    critique: bool = False


class RevisionStage(RowStage):
    """Chains of prompts into two files. What does not fit is the reason of its chain.

    params: of the answers and revisions; critique_params: of the critiques; n is 1 in both. The
    principle of a step is drawn by (seed, prompt, step).
    """

    def __init__(
        self,
        sampler: Sampler,
        params: SamplingParams,
        critique_params: SamplingParams,
        principles: Sequence[Principle],
        steps: int,
        candidates: Path,
        revisions: Path,
        ranks: Ranks = ALONE,
    ) -> None:
        self.principles, self.steps = principles, steps
        self.params = replace(params, n=1)
        self.critique_params = replace(critique_params, n=1)
        super().__init__(sampler, (candidates, revisions), ranks)

    def _load(self) -> None:
        candidates, revisions = self._files()
        self.candidates, self.chains = _load(candidates, revisions, self.ranks)

    def _requests(self, prompts: Sequence[Prompt]) -> Iterable[Request]:
        for prompt in prompts:
            if prompt.prompt_id not in self.chains:
                yield from self._request(_Open(prompt))

    def _request(self, chain: _Open) -> list[Request]:
        """The chain's next request, none where it does not fit: then the chain has ended."""
        params = self.critique_params if chain.critique else self.params
        step = len(chain.critiques)
        # Two steps that ask the same must not be answered the same.
        params = replace(params, seed=derive_seed(params.seed, step) if step else params.seed)
        ids = self._ids(chain)
        if len(ids) + params.max_tokens > self.longest:
            return self._end(chain, "too_long")
        return [Request(ids, params, tag=chain)]

    def _ids(self, chain: _Open) -> list[int]:
        if not chain.answers:
            return chat.encode(self.tokenizer, chain.prompt.text, chain.prompt.turns)
        return chat.encode(self.tokenizer, self._text(chain))

    def _text(self, chain: _Open) -> str:
        """What is asked about the last answer."""
        asked, answer = chain.prompt.conversation, chain.answers[-1].text
        reserved = chat.reserved_strings(self.tokenizer)
        if chain.critique:
            return critique_text(
                self._principle(chain, len(chain.critiques)), asked, answer, reserved
            )
        last = chain.critiques[-1]
        principle = self.principles[last["principle"]]
        return revision_text(principle, asked, answer, last["critique"], reserved)

    def _principle(self, chain: _Open, step: int) -> Principle:
        return self.principles[self._drawn(chain, step)]

    def _drawn(self, chain: _Open, step: int) -> int:
        key = (self.params.seed, "principle", chain.prompt.prompt_id, step)
        return derive_seed(*key) % len(self.principles)

    def _finished(self, generation: Generation) -> Iterable[Request]:
        chain, sample = generation.tag, generation.samples[0]
        if chain.critique:
            self.tokens.judgements += len(sample.token_ids)  # of a critique
            said = {"critique": sample.text, "finish_reason": sample.finish_reason}
            step = {"principle": self._drawn(chain, len(chain.critiques))} | said
            more = (*chain.critiques, step)
            return self._request(replace(chain, critiques=more, critique=False))
        self.tokens.answers += len(sample.token_ids)
        answer = make_candidate(chain.prompt, len(chain.answers), sample)
        chain = replace(chain, answers=(*chain.answers, answer))
        reason, last = self._refusal(chain), len(chain.answers) > self.steps
        if reason or last:
            return self._end(chain, reason)
        return self._request(replace(chain, critique=True))

    def _refusal(self, chain: _Open) -> str | None:
        """Why the newest answer cannot be the revision that it should be."""
        first, new = chain.answers[0], chain.answers[-1]
        if len(chain.answers) == 1:
            return None
        if not new.text.strip():
            return "empty"
        if new.finish_reason == "length":
            return "cut"
        same = new.text.strip() == first.text.strip() and len(chain.answers) > self.steps
        return "identical" if same else None

    def _end(self, chain: _Open, reason: str | None) -> list[Request]:
        ended = Chain(chain.prompt.prompt_id, len(chain.answers), chain.critiques, reason)
        # The chain's own row last: without it the answers do not count.
        self.write[0](*chain.answers)
        self.write[1](ended)
        self.candidates[ended.prompt_id] = list(chain.answers)
        self.chains[ended.prompt_id] = ended
        return []

    def figures(self) -> dict[str, Any]:
        """Counts of the stage, under the names that judged answers have."""
        chains = self.chains.values()
        return {
            "candidates": sum(len(group) for group in self.candidates.values()),
            "judgements": 0,
            "unparsed": 0,
            "too_long": sum(chain.reason == "too_long" for chain in chains),
            "chains": len(self.chains),
            "critiques": sum(len(chain.critiques) for chain in chains),
            "tokens": dataclasses.asdict(self.tokens),
        }


def load_chains(path: Path) -> list[Chain]:
    """The rows of a `revisions.jsonl`. Raises InputError for a row that is none."""
    chains = read_records(path, Chain)
    if not all(isinstance(c.candidates, int) and isinstance(c.critiques, list) for c in chains):
        raise InputError(f"{path}: found a row that is no Chain, wanted what the run wrote")
    return [replace(chain, critiques=tuple(chain.critiques)) for chain in chains]


def _load(
    candidates: Path, revisions: Path, ranks: Ranks
) -> tuple[dict[str, list[Candidate]], dict[str, Chain]]:
    """What is whole in the two files; the rest is cut from them."""
    groups: dict[str, dict[int, Candidate]] = defaultdict(dict)
    rows = read_records(candidates, Candidate)
    for row in rows:
        groups[row.prompt_id][row.index] = replace(row, token_ids=tuple(row.token_ids))
    chains = {
        chain.prompt_id: chain
        for chain in load_chains(revisions)
        if len(groups[chain.prompt_id]) == chain.candidates
    }
    kept = {key: [groups[key][k] for k in sorted(groups[key])] for key in chains}
    if sum(map(len, kept.values())) != len(rows):
        ranks.write(candidates, [row for group in kept.values() for row in group])
    if len(chains) != len(read_jsonl(revisions)):
        ranks.write(revisions, chains.values())
    return kept, chains
