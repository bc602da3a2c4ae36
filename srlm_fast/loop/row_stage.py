"""Requests about prompts in one running batch, whose rows are appended to files as they finish."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from srlm_fast.records import Prompt
from srlm_fast.sampler import Generation, Progress, Request, Sampler

from .ranks import ALONE, Ranks

OnProgress = Callable[[Progress], None]


@dataclass
class Tokens:
    """Tokens a stage generated in this process, by what they were for. A score that is read from a
    hidden row counts as one.
    """

    answers: int = 0
    judgements: int = 0


class RowStage(ABC):
    """Goes on from whatever its files hold. Of many ranks each takes its share of the prompts, and
    has what all have found in the end.

    paths: None for a file that is not written. longest: tokens of prompt and output that a request
    can have. too_long: ids of prompts left out for it, wholly or in part.
    """

    def __init__(
        self, sampler: Sampler, paths: Sequence[Path | None], ranks: Ranks = ALONE
    ) -> None:
        self.sampler, self.ranks, self.paths = sampler, ranks, paths
        self.tokenizer, self.longest = sampler.model.tokenizer, sampler.longest
        self.too_long: list[str] = []
        self.tokens = Tokens()
        ranks.collect(*self._files())
        self._load()

    def _files(self) -> list[Path]:
        return [path for path in self.paths if path is not None]

    @abstractmethod
    def _load(self) -> None:
        """Take up what is whole in the files."""

    @abstractmethod
    def _requests(self, prompts: Sequence[Prompt]) -> Iterable[Request]:
        """What is asked first."""

    @abstractmethod
    def _finished(self, generation: Generation) -> Iterable[Request]:
        """Take up an answer; what is asked because of it."""

    def run(self, prompts: Sequence[Prompt], progress: OnProgress | None = None) -> None:
        """Make the rows of `prompts` that are missing."""
        ranks = self.ranks
        with ExitStack() as files:
            writers = {path: files.enter_context(ranks.appending(path)) for path in self._files()}
            self.write = {i: writers[path].write for i, path in enumerate(self.paths) if path}
            requests = self._requests(ranks.share(prompts))
            self.sampler.run(requests, ranks.in_step(self._finished), progress)
        if ranks.join(self._files(), [prompt.prompt_id for prompt in prompts]):
            self._load()
            self.too_long = [key for part in ranks.gather(self.too_long) for key in part]
            parts = ranks.gather(self.tokens)
            self.tokens = Tokens(sum(p.answers for p in parts), sum(p.judgements for p in parts))
