"""Reward models: one number for a conversation that ends in an answer (arXiv 2203.02155, 3.5).

A decoder of ours with one row in the place of the LM head gives

    r(x, y) = score . hidden[last token of x and y]

and is, on disk, Hugging Face's `...ForSequenceClassification` of its family with one label. Any
other architecture is left to transformers. Scores are in no fixed range: only those of one prompt
can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import chat
from .config import FAMILIES, ModelError
from .context import PackedContext
from .decoder import Model
from .load import (
    find_folder,
    load_folder,
    read_config,
    read_hf,
    read_tokenizer,
    resolve_device,
    resolve_dtype,
)
from .parallel import local
from .weights import weight_files

MAX_TOKENS = 8192  # run at once; a longer conversation runs alone
ARCHITECTURE = "ForSequenceClassification"
Messages = Sequence[Mapping[str, str]]  # {"role", "content"}, the last one the answer


class RewardModel(Protocol):
    """What `load_reward_model` gives."""

    tokenizer: Any

    def scores(self, conversations: Sequence[Messages]) -> list[float | None]:
        """One score each, None for a conversation longer than the model's context. How the rows
        are run together depends on `conversations` alone."""
        ...


def load_reward_model(
    folder_or_name: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> RewardModel:
    """A sequence-classification model of one label from a folder or a hub id.

    Llama, Mistral, Qwen2 and Qwen3 run on our decoder, others in transformers. device and dtype as
    `load_model`. Raises ModelError in one line.
    """
    folder = find_folder(folder_or_name)
    hf = check_reward_folder(folder)
    if hf.get("model_type") in FAMILIES:
        config = read_config(folder).replace(num_labels=1)
        return DecoderReward(load_folder(folder, config, device, dtype))
    return ClassifierReward(folder, device, dtype)


def check_reward_folder(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`. Raises ModelError unless it is a classifier of one label, and for
    a decoder without weights, without a tokenizer or with a chat template that cannot be used.
    """
    hf = read_hf(folder)
    found = [str(name) for name in hf.get("architectures") or []]
    if not any(name.endswith(ARCHITECTURE) for name in found):
        raise ModelError(
            f"{folder}: config.json has architectures {found}; wanted a ...{ARCHITECTURE}"
        )
    labels = len(hf["id2label"]) if "id2label" in hf else hf.get("num_labels", 2)
    if labels != 1:
        raise ModelError(f"{folder}: config.json has {labels} labels; wanted one, the reward")
    if hf.get("model_type") in FAMILIES:
        weight_files(folder)
        check_template(read_tokenizer(folder), folder)
    return hf


def check_template(tokenizer: Any, folder: Path) -> None:
    """Refuse a chat template that cannot render a question with its answer."""
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    try:
        chat.encode_messages(tokenizer, turns)
    except Exception as error:  # jinja raises many kinds
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder}: the chat template cannot be used ({reason})") from None


class DecoderReward:
    """A reward model on our decoder: packed tokens, no padding."""

    def __init__(self, model: Model) -> None:
        if model.config.num_labels != 1:
            raise ModelError(f"the model has {model.config.num_labels} labels; wanted one")
        self.model, self.tokenizer = model, model.tokenizer

    def scores(self, conversations: Sequence[Messages]) -> list[float | None]:
        rows = [conversation_ids(self.model, messages) for messages in conversations]
        longest = self.model.config.max_position_embeddings
        fit = [i for i, row in enumerate(rows) if len(row) <= longest]
        found: list[float | None] = [None] * len(rows)
        values = reward_scores(self.model, [rows[i] for i in fit]).tolist()
        for i, value in zip(fit, values, strict=True):
            found[i] = value
        return found


class ClassifierReward:
    """Any other architecture, in transformers: batches of at most `MAX_TOKENS` padded tokens.

    A tokenizer with a chat template gets the whole conversation; one without gets a pair of texts,
    the last answer and all that stands before it.
    """

    def __init__(
        self,
        folder: Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        place = resolve_device(device)
        kind = resolve_dtype(dtype, place)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            loaded, found = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, dtype=kind, output_loading_info=True
            )
        except Exception as error:  # the library raises many kinds for a broken folder
            reason = str(error).strip().split("\n")[0]
            raise ModelError(f"{folder}: the reward model cannot be read ({reason})") from None
        if missing := sorted(found["missing_keys"]):
            raise ModelError(
                f"{folder}: tensor {missing[0]} is missing from the weights (of {len(missing)}); "
                "wanted those of a whole classifier"
            )
        if self.tokenizer.pad_token is None:
            raise ModelError(f"{folder}: the tokenizer has no padding token; wanted one")
        if self.tokenizer.chat_template:
            check_template(self.tokenizer, folder)
        self.model = loaded.to(place).eval()
        positions = getattr(loaded.config, "max_position_embeddings", None) or 2**31
        self.longest = min(self.tokenizer.model_max_length, positions)

    @torch.inference_mode()
    def scores(self, conversations: Sequence[Messages]) -> list[float | None]:
        rows = [self._encode(messages) for messages in conversations]
        lengths = [len(row["input_ids"]) for row in rows]
        fit = [i for i, length in enumerate(lengths) if length <= self.longest]
        fit.sort(key=lengths.__getitem__)  # like lengths together: little padding
        found: list[float | None] = [None] * len(rows)
        for group in _groups(fit, lengths, padded=True):
            for i, value in zip(group, self._run([rows[i] for i in group]), strict=True):
                found[i] = value
        return found

    def _encode(self, messages: Messages) -> dict[str, list[int]]:
        if self.tokenizer.chat_template:
            return {"input_ids": chat.encode_messages(self.tokenizer, messages)}
        before = "\n\n".join(message["content"] for message in messages[:-1])
        return dict(self.tokenizer(before, messages[-1]["content"]))

    def _run(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        batch = self.tokenizer.pad(
            {name: [row[name] for row in rows] for name in rows[0]},
            padding_side="right",
            return_tensors="pt",
        )
        logits = self.model(**batch.to(self.model.device)).logits
        return logits[:, 0].float().tolist()


def conversation_ids(model: Model, messages: Messages) -> list[int]:
    """Token ids of a conversation by the model's own chat template.

    Padding tokens at its end are cut: where the padding token also ends a text, transformers takes
    the score before it, and so do we.
    """
    ids = chat.encode_messages(model.tokenizer, messages)
    pad = model.config.hf.get("pad_token_id")
    while len(ids) > 1 and ids[-1] == pad:
        ids.pop()
    return ids


@torch.no_grad()
def reward_scores(model: Model, rows: Sequence[Sequence[int]]) -> Tensor:
    """[S] fp32 on the CPU: the score of each row of token ids, none of them empty."""
    found = torch.zeros(len(rows))
    lengths = [len(row) for row in rows]
    for group in _groups(range(len(rows)), lengths):
        token_ids = torch.tensor([token for i in group for token in rows[i]], device=model.device)
        sizes = [lengths[i] for i in group]
        last = torch.tensor(sizes, device=model.device).cumsum(0) - 1
        found[torch.tensor(group)] = packed_scores(model, token_ids, sizes, last).float().cpu()
    return found


def packed_scores(
    model: Model,
    token_ids: Tensor,
    lengths: Sequence[int],
    rows: Tensor,
    parents: Sequence[int] | None = None,
) -> Tensor:
    """[S] fp32 (fp64 for an fp64 model) at `rows` [S] of the stream token_ids [T], which holds
    segments of `lengths` with `parents` as in `PackedContext`. Differentiable.
    """
    assert model.score is not None
    context = PackedContext(lengths, model.config.windows, model.device, parents)
    hidden_SD = model(token_ids, context.positions, context).index_select(0, rows)
    wide = torch.promote_types(model.dtype, torch.float32)
    return F.linear(hidden_SD.to(wide), local(model.score.weight).to(wide))[:, 0]


def with_score_head(model: Model, seed: int) -> Model:
    """A reward model over the very tensors of `model`, with a new score row: what trains it changes
    `model`. To be sharded over data ranks, it comes before `dist.shard`.

    The row is drawn with a standard deviation of 1 / sqrt(D + 1) (arXiv 2009.01325, appendix B.1).
    Raises ValueError for frozen weights with an adapter, beside which a reward model has no files.
    """
    if model.adapter is not None:
        raise ValueError("model: has an adapter, wanted its weights themselves to train")
    config = model.config.replace(num_labels=1)
    with torch.device("meta"):
        made = Model(config, model.tokenizer)
    made.embed, made.layers, made.norm = model.embed, model.layers, model.norm
    made.parallel, made.layout = model.parallel, model.layout
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(1, config.hidden_size, generator=generator) * (config.hidden_size + 1) ** -0.5
    assert made.score is not None
    made.score.weight = torch.nn.Parameter(row.to(model.device, model.dtype))
    made.set_rope()
    return made.eval()


def _groups(
    order: Sequence[int], lengths: Sequence[int], padded: bool = False
) -> Iterator[list[int]]:
    """`order` in pieces of at most `MAX_TOKENS` tokens, one item at least, padding counted where
    there is any."""
    group: list[int] = []
    for i in order:
        sizes = [lengths[k] for k in [*group, i]]
        if group and (max(sizes) * len(sizes) if padded else sum(sizes)) > MAX_TOKENS:
            yield group
            group = []
        group.append(i)
    if group:
        yield group
