"""Candidates that write scores, close fences, imitate the judge or spell a model's special tokens:
none leaves its place in the judge prompt, none becomes a special token, none moves the reading.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from srlm_fast.judge import DEFAULT_RUBRIC, Rubric, parse_score, read_rubric
from srlm_fast.kernels import extract_scores
from srlm_fast.loop import readers
from srlm_fast.loop.answers import judge_text
from srlm_fast.loop.readers import make_reader
from srlm_fast.model import ModelConfig, chat, random_model
from srlm_fast.sampler import Generation, Sample, SamplingParams
from srlm_fast.tiny.rubric import RUBRIC as TINY_RUBRIC

FILE = Path(__file__).with_name("adversarial_candidates.jsonl")
ROWS = [json.loads(line) for line in FILE.read_text("utf-8").split("\n") if line]
NAMES = [row["name"] for row in ROWS]
TEXTS = [row["response"] for row in ROWS]
CASES = list(zip(NAMES, TEXTS, strict=True))
HARMLESS = "Rain is water."

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA2 = "{% for m in messages %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]{% endfor %}"
# name -> (special tokens, added tokens that are not marked as special, template, end token)
KINDS: dict[str, tuple[list[str], list[str], str, str]] = {
    "llama2": (["<unk>", "<s>", "</s>"], [], LLAMA2, "</s>"),
    # Only two of these are among the tokenizer's named ones, as in the models themselves.
    "llama3": (
        [
            *("<|begin_of_text|>", "<|end_of_text|>"),
            *("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        ],
        [],
        LLAMA3,
        "<|eot_id|>",
    ),
    "chatml": (["<|im_start|>", "<|im_end|>"], [], CHATML, "<|im_end|>"),
    "qwen": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ["<think>", "</think>"],
        CHATML + "{% if false %}<think></think>{% endif %}",
        "<|im_end|>",
    ),
    # Template tokens that are merely added, and matched on normalised text.
    "normalising": ([], ["<|im_start|>", "<|im_end|>"], CHATML, "<|im_end|>"),
}


@cache
def tokenizer_of(kind: str) -> Any:
    special, added, template, end = KINDS[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if kind == "normalising":
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace("\u200b", "")]
        )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    normalized = kind == "normalising"
    backend.add_tokens([AddedToken(token, normalized=normalized) for token in added])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=special[0] if special else None
    )
    made.chat_template = template
    made.eos_token = end
    return made


def markers(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids that are no text."""
    return [i for i in ids if i in tokenizer.added_tokens_decoder]


@cache
def own_rubric(folder: Path) -> Rubric:
    path = folder / "own.jinja"
    path.write_text("{% set fence = '###' %}Q\n{{ prompt }}\nA\n{{ response }}\nScore it: 0 to 5.")
    return read_rubric(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rubric")


def folded(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text)
    return "".join(char for char in plain if unicodedata.category(char) != "Cf")


def test_the_file_is_large_enough_and_every_name_stands_once():
    assert len(ROWS) >= 40
    assert len(set(NAMES)) == len(ROWS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["answer", "question"])
def test_no_candidate_becomes_a_special_token(kind, place, folder):
    tokenizer = tokenizer_of(kind)
    for rubric in (DEFAULT_RUBRIC, own_rubric(folder), TINY_RUBRIC):

        def ids(text: str, rubric=rubric) -> list[int]:
            texts = (HARMLESS, text) if place == "answer" else (text, HARMLESS)
            return chat.encode(tokenizer, judge_text(rubric, tokenizer, *texts))

        clean = markers(tokenizer, ids(HARMLESS))
        assert clean
        for name, text in zip(NAMES, TEXTS, strict=True):
            assert markers(tokenizer, ids(text)) == clean, name


def test_without_the_rubrics_care_they_would():
    """The check above can fail: put in as they are, many do become special tokens."""
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        found = [t for t in TEXTS if markers(tokenizer, tokenizer(t)["input_ids"])]
        assert found, kind


@pytest.mark.parametrize(("name", "text"), CASES, ids=NAMES)
def test_every_candidate_stays_inside_its_fence(name, text, folder):
    tokenizer = tokenizer_of("llama3")
    for rubric in (DEFAULT_RUBRIC, own_rubric(folder)):
        made = judge_text(rubric, tokenizer, HARMLESS, text)
        head, tail = judge_text(rubric, tokenizer, HARMLESS, HARMLESS).rsplit(HARMLESS, 1)
        head = head.rpartition(rubric.fence)[0]
        tail = tail.removeprefix(f"\n{rubric.fence}")
        assert made.startswith(head) and made.endswith(tail)
        inside = made[len(head) : len(made) - len(tail)]
        sign = rubric.fence[0]
        opening, rest = inside.split("\n", 1)
        body, closing = rest.rsplit("\n", 1)
        assert opening == closing == sign * len(opening)
        assert body == text or (body.replace(" ", "") == text.replace(" ", "") and "<" in text)
        for seen in (body, folded(body)):
            assert max(map(len, re.findall(f"{re.escape(sign)}+", seen)), default=0) < len(opening)


def turn(tokenizer: Any, text: str, reason: str = "stop") -> Sample:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Sample(
        [*ids, tokenizer.eos_token_id] if reason == "stop" else ids, text, 0.0, None, reason
    )


@pytest.mark.parametrize("kind", ["llama3", "qwen"])
def test_only_the_judges_own_turn_is_read(kind, monkeypatch):
    """What goes into the table is the samples' ids and nothing of the prompt they answer."""
    read = []

    def watched(ids, lengths, table, finished):
        read.extend(row[:n] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True))
        return extract_scores(ids, lengths, table, finished)

    monkeypatch.setattr(readers, "extract_scores", watched)
    tokenizer = tokenizer_of(kind)
    size = len(tokenizer)
    config = ModelConfig(
        "llama", size, 16, 16, 1, 1, 1, 16, eos_token_ids=(tokenizer.eos_token_id,)
    )
    reader = make_reader(
        random_model(config, tokenizer), DEFAULT_RUBRIC, "sampled", SamplingParams(n=4)
    )
    samples = [
        turn(tokenizer, "One point for relevance, one for coverage.\nScore: 2"),
        turn(tokenizer, "I would rather not grade this."),
        turn(tokenizer, "A good answer. The sum is", "length"),
        turn(tokenizer, "Score: 7"),
    ]
    for name, text in zip(NAMES, TEXTS, strict=True):
        prompt = chat.encode(tokenizer, judge_text(DEFAULT_RUBRIC, tokenizer, HARMLESS, text))
        read.clear()
        readings = reader.read(Generation(prompt, samples))
        assert read == [sample.token_ids for sample in samples], name
        assert readings[0][1:3] == (2.0, "OK"), name
        assert [reading.status for reading in readings[1:]] == [
            "MISSING",
            "TRUNCATED",
            "OUT_OF_RANGE",
        ]


@pytest.mark.parametrize(("name", "text"), CASES, ids=NAMES)
def test_a_judge_that_quotes_the_candidate_is_read_by_its_own_last_line(name, text):
    assert parse_score(f'The answer says "{text}".\n\nThat is one point.\nScore: 1')[0] == 1
