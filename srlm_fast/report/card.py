"""The model card of M_t: recipe, data, figures and limits, from what the run has written.

Whatever a run lacks (a score, a judge table, pairs) is left out. The card is a README.md beside the
weights; neither a resumed run nor the hash of the weights looks at it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, iter_jsonl, read_object, write_text_atomic

from .judge_text import FIGURES
from .judge_text import interval as bounds
from .settings import name_of
from .summary import read_summary
from .table import ABSENT, figure

CARD_FILE, TEMPLATE = "README.md", "card.md.jinja"
LICENSES = {  # of the bases that the presets name
    "meta-llama/Llama-2-": "llama2",
    "meta-llama/Meta-Llama-3-": "llama3",
    "meta-llama/Llama-3.1-": "llama3.1",
    "mistralai/Mistral-7B-": "apache-2.0",
    "Qwen/Qwen2.5-0.5B": "apache-2.0",
    "Qwen/Qwen2.5-1.5B": "apache-2.0",
    "Qwen/Qwen2.5-7B": "apache-2.0",
    "Qwen/Qwen3-": "apache-2.0",
}
TINY, TINY_LICENSE = "tiny", "apache-2.0"
FILE = "_file"  # ends the name of a setting that is a file
PAIRED = {"constitution": "a revision over its original"}
MAKERS = {"live": "the live model", "m1": "M1"}
LEFT_OUT = ("out", "inputs")
Row = dict[str, Any]


def write_cards(run: Path, hub_id: str | None = None) -> list[Path]:
    """A card beside each model that the run has made. hub_id: of the model it began from, where the
    hub has it. Raises InputError for a folder that is no run.
    """
    folders = [path for path in run.glob("m*/model") if path.parent.name[1:].isdigit()]
    numbers = sorted(int(folder.parent.name[1:]) for folder in folders)
    return [write_card(run, t, run / f"m{t}" / "model", hub_id) for t in numbers]


def write_card(
    run: Path, number: int, folder: Path, hub_id: str | None = None, merged: bool = False
) -> Path:
    """The card of the run's M_number into `folder`, which holds its weights. merged: they are those
    of an adapter's base with it added.
    """
    path = folder / CARD_FILE
    text = Card(run, number, folder, hub_id, merged).text()
    write_text_atomic(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


@dataclass
class Card:
    """What one card says."""

    run: Path
    number: int
    folder: Path
    hub_id: str | None
    merged: bool

    def text(self) -> str:
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template(TEMPLATE).render(self.values())

    def values(self) -> Row:
        return {
            "head": self.head(),
            "title": f"{self.run.absolute().name} {self.name}",
            "name": self.name,
            "number": self.number,
            "base": self.hub_id or Path(self.base).name,
            "models": [model["name"] for model in self.models],
            "adapter": self.adapter,
            "merged": self.merged and {"quantised": self.value("lora.base_dtype")},
            "stopped": (self.summary.get("stopped") or {}).get("reason"),
            "scores": list(self.scores()),
            "judged_by": self.judged_by(),
            "judge": self.judge(),
            "judge_prompts": (self.own.get("judge") or {}).get("prompts", ABSENT),
            "contests": list(self.contests()),
            "answers": self.by_model("collapse"),
            "human_text": self.by_model("human_text"),
            "warnings": list(self.warnings()),
            "recipe": list(self.recipe()),
            "settings": json.dumps(self.settings(), indent=1, ensure_ascii=False),
            "data": list(self.data()),
            "rounds": [round_row(made) for made in self.rounds],
            "limits": list(self.limits()),
            "loading": list(self.loading()),
            "made_with": ", ".join(f"{name} {v}" for name, v in self.versions.items() if v),
            "seed": self.config.get("seed", ABSENT),
            "weights": None if self.merged else self.own.get("model_hash"),
        }

    # ------------------------------------------------------------------------------ what is there

    @property
    def name(self) -> str:
        return f"M{self.number}"

    @cached_property
    def file(self) -> Row:
        found = read_object(self.run / "config.json")
        if not isinstance(found.get("run"), dict):
            raise InputError(
                f"{self.run}: found no config.json of a run, wanted the folder of a run"
            )
        return found

    @property
    def config(self) -> Row:
        return self.file["run"]

    @property
    def versions(self) -> Row:
        return self.file.get("versions") or {}

    @property
    def base(self) -> str:
        return str(self.config.get("model", "?"))

    def settings(self) -> Row:
        """All of them; of files and folders the name alone, since a card is for others."""
        left_out = {name: value for name, value in self.config.items() if name not in LEFT_OUT}
        return {
            name: Path(value).name if str(value)[:1] == "/" else value
            for name, value in left_out.items()
        }

    def value(self, path: str) -> Any:
        """A setting by its dotted path, None where the run has none of that name."""
        found: Any = self.config
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    @cached_property
    def summary(self) -> Row:
        return read_summary(self.run)

    @cached_property
    def models(self) -> list[Row]:
        """The figures of M1 to this model."""
        return self.rows("models", range(1, self.number + 1))

    @cached_property
    def rounds(self) -> list[Row]:
        """The figures of the rounds that led to this model."""
        return self.rows("rounds", range(2, self.number + 1))

    def rows(self, kind: str, numbers: Iterable[int]) -> list[Row]:
        found = {made["name"]: made for made in self.summary[kind]}
        return [found.get(f"M{t}", {"name": f"M{t}"}) for t in numbers]

    @property
    def own(self) -> Row:
        return self.models[-1]

    @cached_property
    def adapter(self) -> Row | None:
        return read_object(self.folder / "adapter_config.json") or None

    # ------------------------------------------------------------------------------------- blocks

    def head(self) -> list[str]:
        """The YAML that the hub reads; strings as JSON writes them, which YAML reads."""
        tags = ["self-rewarding", "dpo", "srlm-fast", *(["lora"] if self.adapter else [])]
        values: Row = {
            "library_name": "peft" if self.adapter else "transformers",
            "pipeline_tag": "text-generation",
            "license": self.license(),
            "base_model": self.hub_id,
            "base_model_relation": self.hub_id and ("adapter" if self.adapter else "finetune"),
            "tags": tags,
        }
        return [f"{name}: {json.dumps(value)}" for name, value in values.items() if value]

    def license(self) -> str | None:
        """Of the base, where it is known: what is trained from it is bound by it."""
        if self.base == TINY:
            return TINY_LICENSE
        known = [name for start, name in LICENSES.items() if (self.hub_id or "").startswith(start)]
        return known[0] if known else card_license(Path(self.base) / CARD_FILE)

    def scores(self) -> Iterator[list[str]]:
        for model in self.models:
            found = model.get("eval") or {}
            if found.get("score") is not None:
                yield [
                    str(model["name"]),
                    figure(found["score"], ".2f"),
                    bounds(found.get("interval"), ".2f"),
                    str(found.get("n", ABSENT)),
                    figure(model.get("length_mean"), ".0f"),
                ]

    def judged_by(self) -> str:
        by = {(model.get("eval") or {}).get("judged_by") for model in self.models}
        samples = self.value("evaluation.samples")
        each = f" Answers to each prompt: {samples}." if samples else ""
        if "program" in by:
            return f"A program scores the answers from 0 to 5.{each}"
        return f"M1 of this run is the judge of all its models, not people.{each}"

    def contests(self) -> Iterator[str]:
        """This model against earlier ones, on the held-out prompts."""
        for key, name in (("against_previous", f"M{self.number - 1}"), ("against_first", "M1")):
            found = self.own.get(key) or {}
            if found.get("n") and (key == "against_first" or name != "M1"):
                rate, controlled = found["win_rate"], found.get("length_controlled") or {}
                equal = figure(controlled.get("win_rate"), ".1%")
                yield (
                    f"win rate against {name} {rate:.1%} "
                    f"({bounds(found.get('interval'), '.1%')}; {equal} at equal length)"
                )

    def by_model(self, kind: str) -> list[list[str]]:
        """Numbers that some model has, by name, a column for each model; lists (histograms) are
        left to the report.
        """
        found = [model.get(kind) or {} for model in self.models]
        names = dict.fromkeys(name for row in found for name, v in row.items() if is_number(v))
        return [
            [name.replace("_", " "), *(figure(row.get(name), ".4g") for row in found)]
            for name in names
        ]

    def judge(self) -> list[list[str]]:
        found = self.own.get("judge") or {}
        intervals, n = found.get("intervals") or {}, found.get("n") or {}
        control = found.get("length_only") or {}
        return [
            [
                title,
                figure(found[name], spec),
                bounds(intervals.get(name), spec),
                str(n.get(name, ABSENT)),
                figure(control.get(name), spec),
            ]
            for name, title, spec in FIGURES
            if found.get(name) is not None
        ]

    def warnings(self) -> Iterator[Row]:
        for made in self.rounds:
            for warning in made.get("warnings") or []:
                yield {"name": "", "text": "", **warning, "round": made["name"]}

    def recipe(self) -> Iterator[list[str]]:
        """Step and settings, every number of it."""
        if (self.run / "m1" / "sft.jsonl").is_file():
            yield ["SFT on the seeds (M1)", training(self.value("sft"))]
        else:
            yield ["M1", "the given model as it is, no seeds"]
        if rank := self.value("lora.rank"):
            alpha = self.value("lora.alpha") or 2.0 * rank
            frozen = self.value("lora.base_dtype") or "as given"
            yield ["adapter", f"LoRA on every linear: rank {rank}, alpha {alpha:g}, base {frozen}"]
        if self.number > 1:
            yield from self.round_recipe()

    def round_recipe(self) -> Iterator[list[str]]:
        reward, mode = self.config.get("reward", "self"), self.value("judge.mode")
        made = self.value("prompts_file") is None
        maker = Path(self.value("prompt_model") or "live").name
        how = (
            f"made by {MAKERS.get(maker, maker)}: {sampling(self.value('prompt_sampling'))}"
            if made
            else "of a file"
        )
        yield ["prompts of a round", f"{self.value('num_prompts')}, {how}"]
        yield ["answers to each", sampling(self.value("candidates"))]
        yield ["reward", f"{reward}; judge {mode}: {sampling(self.value('judge.sampling'))}"]
        settings = listed(self.value("pairs"))
        which = PAIRED.get(reward, "highest against lowest mean score")
        yield ["pairs", f"{which}; {settings}".removesuffix("; ")]
        if reward == "best-of-n":
            yield ["SFT on the best answers", training(self.value("sft"))]
        else:
            reference = self.value("reference")
            yield ["DPO", f"{training(self.value('dpo'))}; reference {reference}"]
        for name in ("mix_real", "accumulate"):
            if (given := self.value(name)) not in (None, 0, "no"):
                yield [name.replace("_", " "), str(given)]

    def data(self) -> Iterator[str]:
        hashes, accounts = self.config.get("inputs") or {}, self.summary["data"]
        for field, given in self.config.items():
            if field.endswith(FILE) and given:
                option = name_of(field)
                parts = [f"`{option}`: `{Path(given).name}`", *rows_used(accounts.get(option))]
                digest = hashes.get(field)
                yield ", ".join(parts + ([f"SHA-256 `{digest}`"] if digest else []))
        if self.base == TINY:
            yield "where no file is named: instructions and judgements of the embedded toy world"
        yield from self.taught()
        for made in self.rounds:
            yield from self.round_data(made)

    def taught(self) -> Iterator[str]:
        kinds = Counter(row.get("kind", "") for row in iter_jsonl(self.run / "m1" / "sft.jsonl"))
        if kinds:
            yield "rows of M1's SFT: " + ", ".join(
                f"{n} {kind.upper()}" for kind, n in kinds.items()
            )
        if built := self.models[0].get("eft"):
            yield f"EFT was made from ranked answers: {listed(built)}"

    def round_data(self, made: Row) -> Iterator[str]:
        folder = self.run / made["name"].lower()
        sources = Counter(row.get("source", "") for row in iter_jsonl(folder / "prompts.jsonl"))
        if sources:
            yield f"{made['name']}, prompts: " + ", ".join(f"{n} {w}" for w, n in sources.items())
        rejected = counted(made.get("rejected_prompts"))
        if rejected:
            yield f"{made['name']}, prompts not taken: {rejected}"
        if made.get("sft_rows"):
            yield f"{made['name']}, best answers taught: {made['sft_rows']}"
        if mixed := made.get("mixed"):
            yield f"{made['name']}, mixed in: {listed(mixed)}"

    def limits(self) -> Iterator[str]:
        if self.base == TINY:
            yield (
                "A model of a toy world of short instructions, made to show the method: it is of "
                "no use for anything else."
            )
        if any((model.get("eval") or {}).get("judged_by") == "M1" for model in self.models):
            yield (
                "The held-out score is given by a model of the same run, which can share the "
                "trained model's faults; no person has judged it."
            )
        if not list(self.scores()):
            yield "How good it is has not been measured in the run."
        if not self.judge():
            yield "How well it judges has not been measured in the run."
        if self.number > 1:
            yield (
                "The rewards are the model's own judgements or those the recipe names: what such "
                "a judge overrates (length, confident tone) is learnt with the rest. Compare the "
                "mean lengths above."
            )
        yield "Its safety, bias and accuracy were not evaluated, and nothing filters its answers."
        yield "What its base and its data forbid or lack holds for it too."

    def loading(self) -> Iterator[tuple[str, str, str]]:
        path = "path/to/this/folder"
        if self.adapter is None:
            yield "transformers", "python", TRANSFORMERS.format(path=path)
            yield "vLLM", "sh", f"vllm serve {path}"
        else:
            base, rank = self.adapter.get("base_model_name_or_path"), self.adapter["r"]
            yield "PEFT", "python", PEFT.format(path=path, base=base)
            most = next((each for each in VLLM_RANKS if each >= rank), rank)
            yield "vLLM", "sh", VLLM_ADAPTER.format(path=path, base=base, rank=most)
        yield "srlm_fast", "python", OURS.format(path=path)


TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
model = AutoModelForCausalLM.from_pretrained("{path}", dtype="auto")
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))"""
PEFT = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(base, "{path}")"""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank can be
VLLM_ADAPTER = (
    "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules adapter={path}"
)
OURS = """\
import srlm_fast
from srlm_fast.model import chat

model = srlm_fast.load_model("{path}")
prompt = chat.render(model.tokenizer, "...")
print(srlm_fast.Sampler(model).generate([prompt])[0].samples[0].text)"""

SAMPLED = (
    ("n", "{} samples"),
    ("temperature", "temperature {:g}"),
    ("top_p", "top-p {:g}"),
    ("top_k", "top-k {}"),
    ("min_p", "min-p {:g}"),
    ("repetition_penalty", "repetition penalty {:g}"),
    ("max_tokens", "at most {} tokens"),
)
OFF = {"n": 1, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def sampling(params: Row | None) -> str:
    """Sampling parameters in words, those that change nothing left out."""
    given = params or {}
    return ", ".join(
        words.format(given[name])
        for name, words in SAMPLED
        if given.get(name) is not None and given[name] != OFF.get(name)
    )


def training(settings: Row | None) -> str:
    """The settings of a training; what is off is left out."""
    return listed({name: v for name, v in (settings or {}).items() if name != "checkpoint_seconds"})


def listed(values: Row | None) -> str:
    """Names with their values; 0 is off and left out, as what is not there."""
    flat = (values or {}).items()
    shown = {name: v for name, v in flat if v not in (None, False, 0, "", [])}
    return ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in shown.items())


def plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "/".join(plain(each) for each in value)
    if isinstance(value, dict):
        return f"({listed(value)})"
    return "yes" if value is True else str(value)


def rows_used(account: Row | None) -> Iterator[str]:
    """What a file was recognised as, and how much of it was used; nothing where that is unknown."""
    if account:
        rows, lines = account.get("rows", ABSENT), account.get("lines", ABSENT)
        yield f"{account.get('form', ABSENT)}, {rows} rows of {lines} lines"
        if left := counted({name: account.get(name) for name in ("left_out", "skipped")}):
            yield left


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def round_row(made: Row) -> list[str]:
    names = ("prompts", "candidates", "judgements", "unparsed", "pairs")
    counts = [str(made.get(name, ABSENT)) for name in names]
    return [str(made["name"]), *counts, counted(made.get("dropped")) or "none"]


def counted(reasons: Row | None) -> str:
    """Reasons that occurred, with how often."""
    found = {name: n for name, n in (reasons or {}).items() if n}
    return ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in found.items())


def card_license(path: Path) -> str | None:
    """The license in the YAML of another model's card."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = text.split("---")[1] if text.startswith("---") else ""
    named = [line for line in head.splitlines() if line.startswith("license:")]
    return named[0].partition(":")[2].strip().strip("\"'") or None if named else None
