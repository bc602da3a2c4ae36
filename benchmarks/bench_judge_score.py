"""Scores read from token ids, against turning them into text and searching that.

    python -m benchmarks.bench_judge_score [--device cuda|cpu] [--out FOLDER] [--rounds N]

B judgements of L tokens, from ids on the device to scores: 4,096 of 512, and fewer, shorter ones.
The text is of sentences out of Python's standard library with a score line at the end of most
judgements and earlier ones in some; the tokenizer a byte-level BPE of 32,000 tokens learnt from the
same sources.

ours                on a CPU the native walk; on a GPU what the width asks for (walk or chunks)
walk, chunks        the two Triton kernels
PyTorch walk        the same table, a step of eager PyTorch for each position
eager               the route of everybody: ids to the host, `batch_decode`, then the last match of
                    a regular expression in Python (`re`), which knows no truncation and no ranges
row by row          the same with `decode` of each row
specification       `batch_decode` as above, and the whole reading that ours is compiled from

A CPU run has two threads (`--threads`); `batch_decode` may run in parallel as well. Correct is
every score and status of the specification; the short regular expression may differ in one of
twenty of the judgements that have a score. Least bytes: one read of the ids.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from benchmarks import columns, command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import BASELINE, OURS, Row, Variant
from srlm_fast import __version__
from srlm_fast.judge import ScoreTable, compile_pattern
from srlm_fast.kernels import extract_scores, jit, judge_score
from srlm_fast.kernels.judge_score import extract_scores_reference, walk_reference

NAME, VOCAB = "bench_judge_score", 32_000
SHAPES = ((4096, 512), (4096, 128), (256, 512), (64, 64))
BOUNDS = {"others": (0.0, 0.0)}
COMMON = re.compile(r"[Ss]core:\s*\**\s*([0-5])")
ENDS = [
    "\n\nScore: 4", "\nScore: 3/5", "\n**Score:** 2\n", "\nScore: **5**", "\nscore: 0",
    "\nScore: 10", "\nScore: 3.5", "\nI give no score.", "\nScore: four", "\nScore: 1 out of 5.",
]  # fmt: skip
Texts = list[str]


@dataclass(frozen=True)
class Case:
    rows: int
    width: int

    @property
    def name(self) -> str:
        return f"B={self.rows} L={self.width}"


@dataclass(frozen=True)
class Inputs:
    ids: Tensor  # [B, L]
    lengths: Tensor  # [B]
    finished: Tensor  # [B]
    table: ScoreTable
    tokenizer: Any


@cache
def sentences() -> list[str]:
    """Lines of prose in the standard library's sources."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    lines = [line.strip() for path in sources for line in path.read_text("utf-8").splitlines()]
    return [line for line in lines if 40 < len(line) < 90 and line.count(" ") > 6]


@cache
def tokenizer_of(vocab: int) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*sentences(), "Score: 4", "\n\nScore: 3/5"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def judgement(draw: random.Random, tokenizer: Any, width: int) -> list[int]:
    """About `width` tokens of prose, a score line in some place, and mostly one at the end."""
    end = tokenizer(draw.choice(ENDS))["input_ids"]
    size = draw.randint(width // 2, width)
    body: list[int] = []
    while len(body) < size:
        line = draw.choice(sentences()) + draw.choice([" ", "\n"])
        body += tokenizer(line + ("Score: 1\n" if draw.random() < 0.02 else ""))["input_ids"]
    return [*body[: max(0, size - len(end))], *end][:width]


def make_inputs(case: Case, device: str, vocab: int) -> Inputs:
    draw, tokenizer = random.Random(0), tokenizer_of(vocab)
    distinct = [judgement(draw, tokenizer, case.width) for _ in range(min(case.rows, 512))]
    rows = [draw.choice(distinct) for _ in range(case.rows)]
    ids = torch.zeros(case.rows, case.width, dtype=torch.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    finished = torch.tensor([draw.random() < 0.9 for _ in rows])
    on_device = [each.to(device) for each in (ids, lengths, finished)]
    return Inputs(*on_device, compile_pattern(tokenizer), tokenizer)


# Forms: each makes a function without arguments that gives scores, and status where it knows one.


def ours(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return extract_scores(inputs.ids, inputs.lengths, inputs.table, inputs.finished)


def kernel(inputs: Inputs, chunked: bool) -> Callable[[], tuple[Tensor, Tensor]]:
    rows = len(inputs.ids)
    out = (
        torch.empty(rows, device=inputs.ids.device),
        torch.empty(rows, dtype=torch.int32, device=inputs.ids.device),
    )

    def call() -> tuple[Tensor, Tensor]:
        arguments = (inputs.ids, inputs.lengths, inputs.finished, inputs.table, out, chunked)
        judge_score._launch(*arguments)
        return out

    return call


def stepwise(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return walk_reference(inputs.ids, inputs.lengths, inputs.table, inputs.finished)


def rows_of(inputs: Inputs) -> list[list[int]]:
    lengths = inputs.lengths.tolist()
    return [row[:n] for row, n in zip(inputs.ids.tolist(), lengths, strict=True)]


def searched(inputs: Inputs, texts: Texts) -> tuple[Tensor, None]:
    found = [COMMON.findall(text) for text in texts]
    scores = [float(each[-1]) if each else float("nan") for each in found]
    return torch.tensor(scores, device=inputs.ids.device), None


def detokenised(inputs: Inputs) -> tuple[Tensor, None]:
    texts = inputs.tokenizer.batch_decode(rows_of(inputs), skip_special_tokens=True)
    return searched(inputs, texts)


def row_by_row(inputs: Inputs) -> tuple[Tensor, None]:
    texts = [inputs.tokenizer.decode(row, skip_special_tokens=True) for row in rows_of(inputs)]
    return searched(inputs, texts)


def specification(inputs: Inputs) -> tuple[Tensor, Tensor]:
    rows, finished = rows_of(inputs), inputs.finished.tolist()
    texts = inputs.tokenizer.batch_decode(rows, skip_special_tokens=True)
    read = [inputs.table.read(text, done) for text, done in zip(texts, finished, strict=True)]
    device = inputs.ids.device
    scores = torch.tensor([score for score, _ in read], device=device)
    return scores, torch.tensor([int(code) for _, code in read], dtype=torch.int32, device=device)


def variants(inputs: Inputs, options: argparse.Namespace) -> list[Variant]:
    left = None if jit.runs_triton(inputs.ids) else "a Triton kernel, on a GPU only"
    torch_version = f"torch {torch.__version__}"
    tokenizers_version = f"tokenizers {harness.installed('tokenizers')}"
    every = [
        Variant(OURS, partial(ours, inputs), version=__version__),
        *(
            Variant(
                name, None if left else kernel(inputs, chunked), version=__version__, reason=left
            )
            for name, chunked in (("walk", False), ("chunks", True))
        ),
        Variant("PyTorch walk", partial(stepwise, inputs), version=torch_version),
        Variant(BASELINE, partial(detokenised, inputs), version=tokenizers_version),
        Variant("row by row", partial(row_by_row, inputs), version=tokenizers_version),
        Variant("specification", partial(specification, inputs), version=tokenizers_version),
    ]
    return [v for v in every if command.asked_for(v.name, options)]


def errors_of(inputs: Inputs, variant: Variant, output: Any) -> dict[str, float]:
    """Share of rows read otherwise; of the short expression whether many of its readings differ."""
    right = extract_scores_reference(rows_of(inputs), inputs.finished.tolist(), inputs.table)
    scores, status = output
    if status is not None:
        found = list(zip(scores.nan_to_num(-1).tolist(), status.tolist(), strict=True))
        want = [(score if score == score else -1.0, int(code)) for score, code in right]
        return {"others": sum(a != b for a, b in zip(found, want, strict=True)) / len(want)}
    pairs = [(a, b) for a, (b, _) in zip(scores.tolist(), right, strict=True) if b == b]
    return {"others": float(sum(a != b for a, b in pairs) > 0.05 * len(pairs))}


def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    if options.device == "cpu":
        command.pin(command.cores_from(options.core)[: options.threads])
    inputs = make_inputs(case, options.device, 1000 if options.quick else VOCAB)
    moved = inputs.ids.numel() * inputs.ids.itemsize
    table = f"{len(inputs.table.maps)} maps of {inputs.table.maps.shape[1]} states"
    print(f"\n{case.name}, {table}", flush=True)
    rows = harness.measure(
        variants(inputs, options),
        partial(errors_of, inputs),
        BOUNDS,
        options.device,
        flops=moved,
        rate=top["copy_bytes_per_s"],
        seconds=0.2,
        rounds=(options.rounds, 20 * options.rounds),
    )
    timed = columns.times("us", "p20", "p80", "first")
    print(columns.show(rows, *timed, columns.OURS), flush=True)
    return rows, {"bytes": moved, "maps": list(inputs.table.maps.shape), "vocab": VOCAB}


def cases(options: argparse.Namespace) -> list[Case]:
    return [Case(8, 40)] if options.quick else [Case(*shape) for shape in SHAPES]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=2, help="of a CPU run (default: 2)")


def wrong(options: argparse.Namespace) -> str | None:
    return None if options.threads >= 1 else f"--threads {options.threads}, wanted 1 or more"


BENCHMARK = Benchmark(
    NAME,
    __doc__,
    cases,
    run_case,
    packages=("tokenizers", "transformers"),
    add_options=add_options,
    wrong=wrong,
)
main = partial(command.main, BENCHMARK)

if __name__ == "__main__":
    sys.exit(main())
