"""The tiny tokenizer: byte-level BPE trained on the world's own text, with a chat template."""

from __future__ import annotations

import random
import re
from typing import Any

from srlm_fast.tiny.documents import END, Document, Mixture, documents

VOCAB_SIZE = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Bot:\n{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}User: {{ message['content'] }}\n"
    "{% else %}{{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Bot:\n{% endif %}"
)
# What the byte-level pre-tokenizer does to ASCII text; tokens never cross these borders.
_BORDERS = re.compile(r" ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]+|\s+(?!\S)|\s+")
_EVEN = Mixture(question=0.3, review=0.4, tasks=0.1, compare=0.1, copy=0.1)


def train_tokenizer(seed: int = 0, count: int = 20000) -> Any:
    """A `transformers` tokenizer of `VOCAB_SIZE` entries made from `count` documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, count), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _texts(seed: int, count: int) -> list[str]:
    # The judge's own words get tokens too: a rubric in bytes would make every judgement slow.
    from srlm_fast.tiny.judgement import RUBRIC

    rng = random.Random(seed)
    texts = ["".join(text for text, _ in doc[:-1]) for doc in documents(rng, _EVEN, count)]
    return [*texts, *([RUBRIC.format(prompt="", response="") + " Score:"] * 100)]


class DocumentEncoder:
    """Documents to token ids and weights, with every word looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._words: dict[str, list[int]] = {END: [tokenizer.eos_token_id]}

    def encode(self, document: Document) -> tuple[list[int], list[float]]:
        """Token ids of a document and the weight of each in the loss."""
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in document:
            found = self._piece(text)
            ids += found
            weights += [weight] * len(found)
        return ids, weights

    def _piece(self, text: str) -> list[int]:
        if text == END:
            return self._words[END]
        return [i for word in _BORDERS.findall(text) for i in self._word(word)]

    def _word(self, word: str) -> list[int]:
        if word not in self._words:
            self._words[word] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        return self._words[word]
