"""Every option of the command line, once: name, place in the config tree, range, help.

Standard library only: `--help` is answered from this table in milliseconds. `run` makes the parser
from it; `config` reads the same rows to fill the tree, to check ranges and to name the option in
which two runs differ.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from srlm_fast.records import InputError

REWARDS = (
    *("self", "frozen", "model", "pairwise", "constitution", "best-of-n"),
    *("random", "gold"),
)
RECIPES = ("default", "paper")
JUDGE_STOPS = ("end", "line")
JUDGES = ("sampled", "expected", "direct")
LOSSES = ("sigmoid", "robust", "hinge", "ipo", "simpo")
OPTIMIZERS = ("adamw", "adamw-bf16", "adamw-8bit")
SCHEDULES = ("linear", "cosine", "constant")
REFERENCES = ("round", "sft")
ACCUMULATES = ("no", "yes", "subsample")
TRACKERS = ("tensorboard", "wandb")
PROMPT_MODELS = ("live", "m1")  # of --prompt-model, beside names and folders
SHARDS = ("auto", "yes", "no")
DTYPES = ("float32", "bfloat16", "float16")
BASE_DTYPES = ("fp8", "int8")
DTYPE_ALIASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "half": "float16"}


@dataclass(frozen=True)
class Kind:
    """What an option takes: how text is read, which values hold, and how that is said."""

    read: Callable[[str], Any]
    holds: Callable[[Any], bool]
    wanted: str


def whole(low: int) -> Kind:
    """A whole number; lengths and counts are 32 bits wide further down."""
    wanted = f"a whole number of at least {low} and below {2**31}"
    return Kind(int, lambda value: low <= value < 2**31, wanted)


def real(low: float, high: float = math.inf, above: bool = False) -> Kind:
    """A number from `low` (left out where `above`) to `high`."""
    bound = f"above {low:g}" if above else f"of at least {low:g}"
    wanted = f"a number {bound}" + (f", at most {high:g}" if math.isfinite(high) else "")

    def holds(value: float) -> bool:
        return math.isfinite(value) and (low < value if above else low <= value) and value <= high

    return Kind(float, holds, wanted)


def one_of(*names: str, aliases: dict[str, str] | None = None) -> Kind:
    spelled = ", ".join(names[:-1]) + f" or {names[-1]}"
    return Kind(lambda text: (aliases or {}).get(text, text), lambda v: v in names, spelled)


def yes_or_no() -> Kind:
    meant = {"yes": True, "no": False}
    return Kind(
        lambda given: meant.get(given, given), lambda value: value in (True, False), "yes or no"
    )


def some_of(*names: str) -> Kind:
    """Names, each once, parted by commas."""
    return Kind(
        lambda given: tuple(dict.fromkeys(name.strip() for name in given.split(","))),
        lambda values: all(value in names for value in values),
        " or ".join(names) + ", or both parted by a comma",
    )


def text(wanted: str, aliases: Iterable[str] = ()) -> Kind:
    """A text; one of `aliases` in any case."""
    meant = {each.lower(): each for each in aliases}
    return Kind(
        lambda given: meant.get(given.lower(), given),
        lambda value: bool(value.strip()) and "\0" not in value,
        wanted,
    )


@dataclass(frozen=True)
class Option:
    """One option. `path` is the dotted field of `config.Config` that it sets, `also` are others of
    the same meaning that it sets too.
    """

    name: str
    path: str
    kind: Kind
    metavar: str
    help: str
    also: tuple[str, ...] = ()
    alone: str | None = None  # what the option means without a value

    @property
    def key(self) -> str:
        """The attribute argparse keeps it under."""
        return self.name.lstrip("-").replace("-", "_")

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path, *self.also)

    @property
    def for_parser(self) -> dict[str, Any]:
        """Arguments of `add_argument`."""
        own = {"metavar": self.metavar, "help": self.help}
        return own if self.alone is None else own | {"nargs": "?", "const": self.alone}

    def parse(self, given: str) -> Any:
        """The value of `given`. Raises InputError naming the option, what was found and wanted."""
        try:
            value = self.kind.read(given)
        except (ValueError, OverflowError):
            raise self.refusal(given) from None
        self.check(value)
        return value

    def check(self, value: Any) -> None:
        if not self.kind.holds(value):
            raise self.refusal(value)

    def refusal(self, found: Any) -> InputError:
        return InputError(f"{self.name}: found {shown(found)}, wanted {self.kind.wanted}")


def shown(value: Any) -> str:
    """A value on one line, cut where it is long; names of a list as they were given."""
    line = repr(",".join(value) if isinstance(value, tuple) else value)
    return line if len(line) <= 80 else line[:77] + "..."


def of_training(field: str, kind: Kind, metavar: str, help: str) -> Option:
    """An option of every training of a run."""
    name = "--" + field.replace("_", "-")
    also = (f"sft.{field}", f"reward_training.{field}")
    return Option(name, f"dpo.{field}", kind, metavar, help, also)


MADE_PROMPTS = "prompts that a model makes"  # a group, refused beside --prompts
_FILE = text("the name of a file")
_AT_LEAST_0 = whole(0)
_AT_LEAST_1 = whole(1)

GROUPS: dict[str, tuple[Option, ...]] = {
    "the run": (
        Option(
            "--model",
            "model",
            text("a folder, a hub id or a preset"),
            "NAME_OR_FOLDER",
            "a Hugging Face folder, a hub id, or a preset such as llama-3-8b (default: tiny)",
        ),
        Option("--seed", "seed", whole(0), "N", "every random number comes from it (default: 0)"),
        Option("--iterations", "iterations", whole(0), "N", "rounds of DPO (default: 2)"),
        Option(
            "--recipe",
            "recipe",
            one_of(*RECIPES),
            "NAME",
            "where the other numbers come from: default, or paper for those of arXiv 2401.10020",
        ),
        Option(
            "--device",
            "device",
            text("a device"),
            "NAME",
            "cpu, cuda, cuda:1 (default: the first GPU, else cpu)",
        ),
        Option(
            "--dtype",
            "dtype",
            one_of(*DTYPES, aliases=DTYPE_ALIASES),
            "NAME",
            "of weights and activations (default: float32 on cpu, bfloat16 on a GPU)",
        ),
        Option(
            "--log",
            "log",
            some_of(*TRACKERS),
            "NAMES",
            "also hand the lines of metrics.jsonl to tensorboard, wandb or both, parted by a comma",
        ),
    ),
    "many devices": (
        Option(
            "--tensor-parallel",
            "tensor_parallel",
            _AT_LEAST_1,
            "N",
            "of a start with torchrun: ranks that hold one copy of the weights together, a divisor "
            "of all ranks; prompts and pairs are split over the rest (default: 1)",
        ),
        Option(
            "--shard",
            "shard",
            one_of(*SHARDS),
            "WHEN",
            "weights over the ranks that prompts are split over (FSDP): yes, no, or auto, where "
            "training a copy on each would not fit (default: auto)",
        ),
        Option(
            "--kv-gb",
            "kv_gb",
            real(0.0, above=True),
            "GB",
            "of each device for keys and values while sampling (default: a quarter of its memory, "
            "on a CPU at most 0.54)",
        ),
    ),
    "your own data": (
        Option(
            "--prompts",
            "prompts_file",
            _FILE,
            "FILE",
            "prompts, instead of those the model makes; like every file here of any usual form, "
            "told by its content: rows of `prompt`, Alpaca, ShareGPT, messages, TRL's forms, "
            "UltraFeedback, as .jsonl, .json, .parquet, gzip, or .txt with a prompt a line",
        ),
        Option(
            "--ift",
            "ift_file",
            _FILE,
            "FILE",
            "instructions with answers: seed of instruction following",
        ),
        Option(
            "--eft",
            "eft_file",
            _FILE,
            "FILE",
            "JSONL with `prompt`, `response`, `judgement`, `score`: seed of judging; or answers "
            "whose order is known (`prompt`, `responses`, `scores`; pairs), from which it is made",
        ),
        Option(
            "--eft-eval",
            "eft_eval_file",
            _FILE,
            "FILE",
            "answers whose order is known, that the judge is measured on instead of a tenth of "
            "--eft",
        ),
        Option(
            "--eval-prompts",
            "eval_prompts_file",
            _FILE,
            "FILE",
            "prompts that are held out for the score of each model",
        ),
        Option(
            "--skip-bad",
            "skip_bad",
            yes_or_no(),
            "YES_OR_NO",
            "pass over lines that cannot be read, count them and name the first, instead of an "
            "error (default: no)",
            alone="yes",
        ),
        Option(
            "--chat-template",
            "chat_template_file",
            _FILE,
            "FILE",
            "a Jinja chat template in the place of the model's own, saved with every model of the "
            "run",
        ),
        Option(
            "--human-text",
            "human_text_file",
            _FILE,
            "FILE",
            "as --ift, never learnt from: what people wrote, whose perplexity is watched (default: "
            "what of --ift and --eft is held out)",
        ),
    ),
    MADE_PROMPTS: (
        Option(
            "--prompt-model",
            "prompt_model",
            text("live, m1, a folder or a hub id", aliases=PROMPT_MODELS),
            "WHO",
            "live: the model of the round; m1: M1 in every round; or another model's folder, hub "
            "id or preset, asked in a chat turn where it has a chat template of its own (default: "
            "live, m1 with --recipe paper)",
        ),
        Option(
            "--prompt-temperature",
            "prompt_sampling.temperature",
            real(0.0),
            "T",
            "of new prompts",
        ),
        Option(
            "--prompt-top-p",
            "prompt_sampling.top_p",
            real(0.0, 1.0, above=True),
            "P",
            "of new prompts",
        ),
        Option(
            "--similarity",
            "prompts.similarity",
            real(0.0, 1.0, above=True),
            "F",
            "ROUGE-L with a known prompt from which on a new one is left out",
        ),
        Option(
            "--near-duplicate",
            "prompts.near_duplicate",
            real(0.0, 1.0),
            "F",
            "word pairs shared with a known prompt (ROUGE-2) from which on a new one is left out, "
            "as where clauses have changed places (0: off)",
        ),
    ),
    "each round": (
        Option("--num-prompts", "num_prompts", _AT_LEAST_1, "N", "prompts to answer in a round"),
        Option("--candidates", "candidates.n", whole(2), "N", "answers sampled per prompt"),
        Option("--temperature", "candidates.temperature", real(0.0), "T", "of the answers"),
        Option("--top-p", "candidates.top_p", real(0.0, 1.0, above=True), "P", "of the answers"),
        Option(
            "--max-tokens", "candidates.max_tokens", _AT_LEAST_1, "N", "longest answer, in tokens"
        ),
    ),
    "judging": (
        Option(
            "--judge",
            "judge.mode",
            one_of(*JUDGES),
            "HOW",
            "sampled: the score that is written; expected: the mean over the score's digits behind "
            "one justification; direct: the same without one",
        ),
        Option(
            "--judge-stop",
            "judge.stop",
            one_of(*JUDGE_STOPS),
            "WHERE",
            "of --judge sampled: end, where the judge ends; line, the first line with a score",
        ),
        Option(
            "--judge-samples",
            "judge.sampling.n",
            _AT_LEAST_1,
            "N",
            "judgements per answer, averaged",
        ),
        Option(
            "--judge-temperature", "judge.sampling.temperature", real(0.0), "T", "of the judgements"
        ),
        Option(
            "--judge-max-tokens",
            "judge.sampling.max_tokens",
            _AT_LEAST_1,
            "N",
            "longest judgement, in tokens",
        ),
        Option(
            "--rubric",
            "rubric_file",
            _FILE,
            "FILE",
            "a Jinja template with {{ prompt }} and {{ response }} that sets its pattern, low and "
            "high (docs/judging.md), instead of the additive rubric",
        ),
        Option(
            "--reward",
            "reward",
            one_of(*REWARDS),
            "WHO",
            "self; frozen: always M1; model: a reward model; pairwise: the live model compares "
            "answers two by two; constitution: a revision over its original; best-of-n: judged as "
            "self, the best answer is taught by SFT; random: a control; gold: the tiny world's "
            "own scorer",
        ),
        Option(
            "--reward-model",
            "reward_model",
            text("a folder or a hub id"),
            "NAME_OR_FOLDER",
            "of --reward model: a Hugging Face sequence classifier with one label",
        ),
        Option(
            "--reward-pairs",
            "reward_pairs_file",
            _FILE,
            "FILE",
            "of --reward model: answers whose order is known (`prompt`, `chosen`, `rejected`, or "
            "any form of --eft-eval); one is trained on them from M1",
        ),
        Option(
            "--constitution",
            "constitution_file",
            _FILE,
            "FILE",
            "of --reward constitution: JSONL with the requests `critique` and `revision`, one "
            "principle a line, instead of the built-in ones",
        ),
        Option(
            "--revisions",
            "revisions",
            _AT_LEAST_1,
            "N",
            "of --reward constitution: critiques and revisions in a row",
        ),
    ),
    "pairs": (
        Option(
            "--min-margin",
            "pairs.min_margin",
            real(0.0),
            "X",
            "least difference of the two mean scores of a pair (default: 0, any)",
        ),
        Option(
            "--length-control",
            "pairs.length_control",
            real(0.0, 0.99),
            "RHO",
            "share of the range of a prompt's scores in which answers count as equal: the shortest "
            "of the best is chosen, the longest of the worst rejected (default: 0, off)",
        ),
        Option(
            "--min-judgements",
            "pairs.min_judgements",
            _AT_LEAST_1,
            "N",
            "judgements with a score that an answer needs to count (default: 1)",
        ),
    ),
    "training": (
        Option(
            "--lora-rank",
            "lora.rank",
            _AT_LEAST_0,
            "R",
            "train an adapter of this rank on every linear of a frozen model, which wants larger "
            "learning rates (default: 0, train the weights themselves)",
        ),
        Option(
            "--lora-alpha",
            "lora.alpha",
            real(0.0, above=True),
            "A",
            "of --lora-rank: the adapter is scaled by alpha / rank (default: twice the rank)",
        ),
        Option(
            "--base-dtype",
            "lora.base_dtype",
            one_of(*BASE_DTYPES),
            "NAME",
            "of --lora-rank: the frozen matrices in fp8 or int8, a scale for each row (default: "
            "--dtype)",
        ),
        Option(
            "--sft-lr",
            "sft.learning_rate",
            real(0.0, above=True),
            "LR",
            "first learning rate of supervised training",
        ),
        Option("--sft-epochs", "sft.epochs", _AT_LEAST_1, "N", "passes over the seeds"),
        Option(
            "--reward-lr",
            "reward_training.learning_rate",
            real(0.0, above=True),
            "LR",
            "first learning rate of the reward model of --reward-pairs",
        ),
        Option(
            "--reward-epochs",
            "reward_training.epochs",
            _AT_LEAST_1,
            "N",
            "passes over --reward-pairs",
        ),
        Option(
            "--lr", "dpo.learning_rate", real(0.0, above=True), "LR", "first learning rate of DPO"
        ),
        Option(
            "--beta",
            "dpo.beta",
            real(0.0, above=True),
            "B",
            "of DPO: how closely the policy is held to the round's start; "
            "of simpo: scale of the margin, there 2 where not given",
        ),
        Option("--loss", "dpo.loss", one_of(*LOSSES), "NAME", f"of DPO: {', '.join(LOSSES)}"),
        Option(
            "--label-smoothing",
            "dpo.label_smoothing",
            real(0.0, 0.49),
            "E",
            "share of pairs taken to be ordered wrongly",
        ),
        Option(
            "--gamma",
            "dpo.gamma",
            real(0.0),
            "G",
            "target margin of --loss simpo, there 1 where not given",
        ),
        Option(
            "--nll-weight",
            "dpo.nll_weight",
            real(0.0),
            "W",
            "weight of the chosen answer's NLL beside the loss of DPO",
        ),
        Option("--epochs", "dpo.epochs", _AT_LEAST_1, "N", "passes over a round's pairs"),
        Option("--batch-pairs", "dpo.batch_pairs", _AT_LEAST_1, "N", "pairs in an optimizer step"),
        Option(
            "--reference",
            "reference",
            one_of(*REFERENCES),
            "MODEL",
            "of DPO: round, the model that the round starts from; sft, M1 in every round",
        ),
        Option(
            "--accumulate",
            "accumulate",
            one_of(*ACCUMULATES),
            "HOW",
            "rows that a round learns from: no, its own; yes, those of earlier rounds too; "
            "subsample, as many as its own, drawn from all of them (default: no)",
        ),
        Option(
            "--mix-real",
            "mix_real",
            real(0.0, 0.9),
            "SHARE",
            "of the rows that a round learns from: rows of --ift and --eft, by their NLL beside "
            "the loss of its pairs (default: 0, none)",
        ),
        Option(
            "--real-weight",
            "dpo.real_weight",
            real(0.0),
            "W",
            "of --mix-real: weight of a row's mean NLL against a pair's loss (default: 1)",
        ),
        Option(
            "--held-out-pairs",
            "held_out_pairs",
            real(0.0, 0.9),
            "SHARE",
            "of a round's prompts with pairs, not learnt from but evaluated on (default: 0, none)",
        ),
        Option(
            "--evaluate-every",
            "dpo.evaluate_every",
            _AT_LEAST_0,
            "N",
            "steps of DPO between evaluations on --held-out-pairs; the model ends with the weights "
            "of the lowest loss",
        ),
        Option(
            "--patience",
            "dpo.patience",
            _AT_LEAST_0,
            "N",
            "evaluations without a lower loss that end a round's DPO (default: 0, none do)",
        ),
    ),
    "every training": (
        of_training(
            "optimizer",
            one_of(*OPTIMIZERS),
            "NAME",
            "adamw; adamw-bf16, adamw-8bit: moments in so many bits, and bfloat16 weights rounded "
            "at random in place of float32 copies",
        ),
        of_training(
            "schedule",
            one_of(*SCHEDULES),
            "NAME",
            f"of the learning rate: {', '.join(SCHEDULES)}",
        ),
        of_training(
            "final_fraction",
            real(0.0, 1.0),
            "F",
            "of the first learning rate, behind the last step",
        ),
        of_training("warmup_steps", _AT_LEAST_0, "N", "steps up to the first learning rate"),
        of_training("weight_decay", real(0.0), "W", "of AdamW, on matrices"),
        of_training(
            "max_grad_norm",
            real(0.0, above=True),
            "X",
            "gradients of a larger norm are scaled to it",
        ),
        of_training("dropout", real(0.0, 0.99), "P", "on the two branches of each block"),
        of_training(
            "activation_checkpointing",
            yes_or_no(),
            "YES_OR_NO",
            "run each block again in the backward pass: less memory, a third more arithmetic",
        ),
        of_training(
            "micro_batch_tokens", _AT_LEAST_1, "N", "tokens at once; changes memory, not the loss"
        ),
    ),
    "measuring": (
        Option(
            "--eval-count", "evaluation.num_prompts", _AT_LEAST_1, "N", "held-out prompts per model"
        ),
        Option(
            "--eval-samples", "evaluation.samples", _AT_LEAST_1, "N", "answers per held-out prompt"
        ),
        Option(
            "--eval-judged",
            "evaluation.num_judged",
            _AT_LEAST_0,
            "N",
            "prompts with answers of known order that the judge is measured on, at most",
        ),
        Option(
            "--stop-on-collapse",
            "stop_on_collapse",
            yes_or_no(),
            "YES_OR_NO",
            "end the run, with status 3, behind a round with a warning of collapse (default: no, "
            "only warn)",
        ),
    ),
}

OPTIONS: tuple[Option, ...] = tuple(option for group in GROUPS.values() for option in group)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` was probably meant to be: one it begins, else one it resembles."""
    known = list(names)
    begun = [name for name in known if name.startswith(word) and len(word) > len("--")]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return next(iter(begun + close), None)
