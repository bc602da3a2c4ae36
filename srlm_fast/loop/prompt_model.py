"""Whose weights make the prompts of a round: `--prompt-model`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from srlm_fast.data import PromptConfig
from srlm_fast.judge.fence import defused
from srlm_fast.model import Model, ModelError, chat, find_folder, load_model, read_config
from srlm_fast.records import InputError
from srlm_fast.sampler import Sampler, SamplingParams

from .state import ModelFolder
from .weights import WeightsOf

if TYPE_CHECKING:
    from .loop import Run


@dataclass(frozen=True)
class Author:
    """A model that makes prompts. as_chat: it is asked in a chat turn, else it goes on with a
    text.
    """

    model: Model
    sampler: Sampler
    as_chat: bool = False

    def layout(self, config: PromptConfig) -> PromptConfig:
        """How it is asked: a turn ends with a request, a text with the start of a task."""
        return dataclasses.replace(config, tail=config.chat_tail) if self.as_chat else config

    def params(self, params: SamplingParams) -> SamplingParams:
        """A turn has an end of its own; what stops a text may stand in it before the prompt."""
        return dataclasses.replace(params, stop=()) if self.as_chat else params

    def ids(self, text: str) -> list[int]:
        """A request as token ids, cut from the left where it is longer than half the context."""
        tokenizer = self.model.tokenizer
        if not self.as_chat:
            return self._cut(tokenizer(text)["input_ids"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        kept = self._cut(ids)
        text = text if len(kept) == len(ids) else tokenizer.decode(kept)
        return chat.encode(tokenizer, defused(text, chat.reserved_strings(tokenizer)))

    def _cut(self, ids: list[int]) -> list[int]:
        return ids[-(self.model.config.max_position_embeddings // 2) :]


def check_prompt_model(name: str) -> None:
    """Raise InputError where no model of the name can be found and read."""
    try:
        read_config(find_folder(name))
    except ModelError as error:
        raise InputError(f"--prompt-model {error}") from None


@contextmanager
def prompt_author(run: Run, folder: ModelFolder) -> Iterator[Author]:
    """Who makes the prompts of the round that makes `folder`, for one sampling phase. Another model
    is freed when the last has let go of it.
    """
    live, other = run.folders[folder.number - 2], run.config.other_prompt_model
    if other is not None:
        with another_author(run, other) as author:
            yield author
    elif run.config.prompt_model == "m1" and live.number > 1:
        with WeightsOf(run, run.folders[0], live), run.sampling():
            yield Author(run.model, run.sampler)
    else:
        with run.sampling():
            yield Author(run.model, run.sampler)


@contextmanager
def another_author(run: Run, name: str) -> Iterator[Author]:
    """Another model beside the run's own, which has made room for it but for its weights; laid out
    over the ranks as that one is.
    """
    run.sampler.release()
    config = run.config
    with run.memory.phase("prompting"):
        model = load_model(name, config.device, config.dtype, run.ranks.split)
        with run.ranks.whole(model):
            yield Author(
                model, Sampler(model, run.kv_bytes), is_asked_in_chat(model, config.prompts)
            )


def is_asked_in_chat(model: Model, config: PromptConfig) -> bool:
    """A model with a chat template of its own has been tuned to answer; one that got our default
    is taken for a base model. A layout without `chat_tail` is for neither.
    """
    return bool(config.chat_tail) and model.tokenizer.chat_template != chat.DEFAULT_TEMPLATE
