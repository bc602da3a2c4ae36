"""Everything that makes a run, as one frozen tree of the stages' own dataclasses.

A recipe fills the tree, options override single fields, `config.json` keeps it. No stage reads this
tree: `loop` hands each stage its own branch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import platform
from argparse import Namespace
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from srlm_fast import __version__
from srlm_fast.data import PromptConfig
from srlm_fast.judge import PairConfig
from srlm_fast.model import Adapter, LoraConfig
from srlm_fast.model.peft import CONFIG as ADAPTER_FILE
from srlm_fast.options import OPTIONS, PROMPT_MODELS, Option
from srlm_fast.records import InputError
from srlm_fast.run_folder import CONFIG_FILE, read_json
from srlm_fast.run_models import TINY as TINY
from srlm_fast.run_models import resolve_model
from srlm_fast.sampler import SamplingParams
from srlm_fast.tiny.settings import SETTINGS
from srlm_fast.train import DpoConfig, RewardConfig, SftConfig

ROW_FILES = (  # whose lines `--skip-bad` can pass over
    "prompts_file",
    "ift_file",
    "eft_file",
    "eft_eval_file",
    "eval_prompts_file",
    "human_text_file",
    "reward_pairs_file",
)
FILES = (*ROW_FILES, "constitution_file", "rubric_file", "chat_template_file")
FOLDERS = ("model", "reward_model", "prompt_model")
# Tokens run at once in training. Activations are kept for backward, some megabytes a token for a
# model of billions, so a small piece decides whether such a model fits; its rows still fill a GPU.
MICRO_BATCH = 2048
ENDS_BYTES = 1 << 20  # read of each end of a file of weights
SIMPO_BETA, SIMPO_GAMMA = 2.0, 1.0  # of arXiv 2405.14734 for Llama 3 8B
CONTENT = " (the file's content)"  # behind an option in which two runs differ
OWN_ANSWERS = 128  # at most, to held-out prompts, that a model's own score is of
JUDGED = ("self", "frozen", "best-of-n")  # rewards whose scores a judge writes
# Where a run is written and shown, on how many devices with which memory, and whether a warning
# ends it, is not what it is.
NOT_COMPARED = ("out", "tensor_parallel", "shard", "kv_gb", "log", "stop_on_collapse")


@dataclass(frozen=True)
class JudgeConfig:
    """mode: "sampled" reads the written score; "expected" is the mean over the score's digits
    behind one justification, "direct" behind none. stop: a sampled judgement goes on to its "end",
    or to the end of the first "line" that holds a score.
    """

    mode: str = "sampled"
    sampling: SamplingParams = field(
        default_factory=lambda: SamplingParams(n=3, temperature=0.7, top_p=0.9, max_tokens=256)
    )
    stop: str = "end"


@dataclass(frozen=True)
class EvaluationConfig:
    """The held-out score of each model: `samples` answers to each of `num_prompts` prompts.

    The judge table: at most `num_judged` prompts whose answers have a known order.
    """

    num_prompts: int = 128
    samples: int = 1
    num_judged: int = 541


@dataclass(frozen=True)
class AdapterConfig:
    """What trains in the place of the weights, if anything. rank 0: the weights; alpha None: twice
    the rank; base_dtype None: that of the model.
    """

    rank: int = 0
    alpha: float | None = None
    base_dtype: str | None = None

    def fresh(self, seed: int) -> Adapter | None:
        """The adapter that a run begins with."""
        if not self.rank:
            return None
        return Adapter(LoraConfig(self.rank, self.alpha or 2.0 * self.rank), seed)


@dataclass(frozen=True)
class Config:
    """One run. Files are absolute paths or None; device and dtype None: the default."""

    model: str = TINY
    seed: int = 0
    iterations: int = 2
    recipe: str = "default"
    reward: str = "self"
    device: str | None = None
    dtype: str | None = None
    tensor_parallel: int = 1  # ranks that hold one copy of the weights together
    shard: str = "auto"  # weights over data ranks
    kv_gb: float | None = None  # None: the sampler's default
    log: tuple[str, ...] = ()  # packages that are told every line of metrics.jsonl
    prompts_file: str | None = None
    ift_file: str | None = None
    eft_file: str | None = None
    eft_eval_file: str | None = None
    eval_prompts_file: str | None = None
    human_text_file: str | None = None
    skip_bad: bool = False  # lines of those files that cannot be read
    rubric_file: str | None = None
    chat_template_file: str | None = None  # None: the model's own
    reward_model: str | None = None
    reward_pairs_file: str | None = None
    constitution_file: str | None = None  # None: the built-in principles
    revisions: int = 1  # of an answer under --reward constitution
    num_ift: int | None = None  # rows taken of each seed; None takes all
    num_eft: int | None = None
    num_prompts: int = 1024
    prompt_model: str = "live"  # or "m1", or another model's name or folder
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    sft: SftConfig = field(default_factory=lambda: SftConfig(micro_batch_tokens=MICRO_BATCH))
    prompts: PromptConfig = field(default_factory=PromptConfig)
    prompt_sampling: SamplingParams = field(
        default_factory=lambda: SamplingParams(
            temperature=0.6, top_p=0.9, max_tokens=256, stop=("\nTask ",)
        )
    )
    candidates: SamplingParams = field(
        default_factory=lambda: SamplingParams(n=4, temperature=0.7, top_p=0.9, max_tokens=512)
    )
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    pairs: PairConfig = field(default_factory=PairConfig)
    reference: str = "round"  # of DPO: whose log-probs; "sft": M1's
    held_out_pairs: float = 0.0  # share of a round's prompts
    accumulate: str = "no"  # rows of earlier rounds: "yes", or "subsample" to the size of one
    mix_real: float = 0.0  # share of the rows of a round that are the seeds'
    dpo: DpoConfig = field(default_factory=lambda: DpoConfig(micro_batch_tokens=MICRO_BATCH))
    reward_training: RewardConfig = field(
        default_factory=lambda: RewardConfig(micro_batch_tokens=MICRO_BATCH)
    )
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stop_on_collapse: bool = False
    inputs: dict[str, str] = field(default_factory=dict)  # SHA-256 of each file's content
    out: str = ""

    @property
    def other_prompt_model(self) -> str | None:
        """One that makes the prompts and that the run does not have in memory anyway."""
        is_own = self.prompts_file is not None or self.prompt_model in PROMPT_MODELS
        return None if is_own else self.prompt_model

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def recipe(name: str, model: str) -> Config:
    """The tree before options: the tiny model's own numbers or those for a user's model, and over
    either the paper's."""
    base = tiny() if model == TINY else Config()
    return paper(base) if name == "paper" else base


def paper(base: Config) -> Config:
    """`base` with what arXiv 2401.10020 states in its sections 2 and 3.1.

    Its prompts come from a model that stays the same, Llama 2 70B Chat; here from M1, the fixed
    model that is there anyway, unless --prompt-model names another. Left as they are: the longest
    texts, the passes over the data, the filter of near duplicates and, because the paper gives only
    the pairs that came of them (3,964 and 6,942), the number of prompts of a round, set to 8,192.
    """
    return dataclasses.replace(
        base,
        recipe="paper",
        num_ift=3200,
        num_eft=1630,
        num_prompts=8192,
        prompt_model="m1",
        sft=dataclasses.replace(
            base.sft,
            learning_rate=5.5e-6,
            schedule="cosine",
            final_fraction=0.2,
            batch_rows=16,
            dropout=0.1,
        ),
        prompts=dataclasses.replace(base.prompts, seed_shots=6, made_shots=2, similarity=0.7),
        prompt_sampling=dataclasses.replace(base.prompt_sampling, temperature=0.6, top_p=0.9),
        candidates=dataclasses.replace(base.candidates, n=4, temperature=0.7, top_p=0.9),
        judge=JudgeConfig(
            "sampled",
            dataclasses.replace(base.judge.sampling, n=3, temperature=0.7, top_p=0.9),
        ),
        dpo=dataclasses.replace(
            base.dpo,
            learning_rate=1e-6,
            final_fraction=0.1,
            beta=0.1,
            batch_pairs=16,
            dropout=0.1,
        ),
    )


def tiny() -> Config:
    """A model of a few million weights needs larger steps and shorter texts."""
    own = SETTINGS
    return Config(
        num_ift=own.num_ift,
        num_eft=own.num_eft,
        num_prompts=own.num_prompts,
        sft=SftConfig(
            learning_rate=own.sft_learning_rate,
            epochs=own.sft_epochs,
            batch_rows=own.sft_batch_rows,
        ),
        # Its instructions are short and much alike: at the paper's 0.7 three of four are turned
        # away, and those that are left are the broken ones. Word pairs are shared even more: they
        # are one template with other words. M0 makes tasks by going on with a text, not in a turn.
        prompts=PromptConfig(
            header="Here are some tasks.\n",
            similarity=own.rouge_threshold,
            keywords=(),
            min_words=2,
            near_duplicate=0.0,
            chat_tail="",
        ),
        prompt_sampling=SamplingParams(
            temperature=own.temperature, top_p=own.top_p, max_tokens=own.max_tokens, stop=("\n",)
        ),
        candidates=SamplingParams(
            n=own.num_candidates,
            temperature=own.temperature,
            top_p=own.top_p,
            max_tokens=own.max_tokens,
        ),
        judge=JudgeConfig(
            sampling=SamplingParams(
                n=own.num_judgements,
                temperature=own.judge_temperature,
                top_p=own.top_p,
                max_tokens=own.judge_max_tokens,
            )
        ),
        dpo=DpoConfig(
            learning_rate=own.dpo_learning_rate,
            beta=own.dpo_beta,
            epochs=own.dpo_epochs,
            batch_pairs=own.dpo_batch_pairs,
        ),
        reward_training=RewardConfig(
            learning_rate=own.sft_learning_rate,
            epochs=own.sft_epochs,
            batch_pairs=own.dpo_batch_pairs,
        ),
        evaluation=EvaluationConfig(num_prompts=own.num_held_out, samples=own.num_eval_samples),
    )


def from_options(arguments: Namespace) -> Config:
    """The tree for parsed options (an attribute per option, None where it was not given).

    Raises InputError naming the option.
    """
    model = arguments.model if arguments.model is not None else TINY
    config = recipe(arguments.recipe or "default", model)
    if arguments.loss == "simpo":
        simpo = dataclasses.replace(config.dpo, loss="simpo", beta=SIMPO_BETA, gamma=SIMPO_GAMMA)
        config = dataclasses.replace(config, dpo=simpo)
    for option in OPTIONS:
        value = getattr(arguments, option.key, None)
        if value is not None:
            config = put_option(config, option, value)
    for name in FILES:
        config = put(config, name, absolute(getattr(config, name)))
    for name, folder in model_folders(config).items():
        config = put(config, name, resolved(option_at(name), str(folder)))
    config = dataclasses.replace(config, inputs=fingerprints(config))
    check(config)
    return config


def resolved(option: str, folder: str) -> str:
    try:
        return resolve_model(folder).folder_or_name
    except InputError as error:
        raise InputError(f"{option} {error}") from None


def put_option(config: Config, option: Option, value: Any) -> Config:
    try:
        for path in option.paths:
            config = put(config, path, value)
        return config
    except ValueError as error:  # the stage's own check, which names its field
        said = str(error).removeprefix(f"{option.path.rpartition('.')[2]}: ")
        raise InputError(f"{option.name}: {said}") from error


def put(tree: Any, path: str, value: Any) -> Any:
    """`tree` with the field at a dotted `path` replaced."""
    name, _, rest = path.partition(".")
    if rest:
        value = put(getattr(tree, name), rest, value)
    return dataclasses.replace(tree, **{name: value})


def get(tree: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), tree)


def absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())


def fingerprints(config: Config) -> dict[str, str]:
    """What the given files hold, so that a run is not gone on with after a file has changed."""
    given = {name: getattr(config, name) for name in FILES if getattr(config, name) is not None}
    found = {name: fingerprint(option_at(name), path) for name, path in given.items()}
    return found | {
        name: model_fingerprint(option_at(name), folder)
        for name, folder in model_folders(config).items()
    }


def model_folders(config: Config) -> dict[str, Path]:
    """Those given models that are folders here; `live` and `m1` are no folders of that name."""
    given = {name: getattr(config, name) for name in FOLDERS}
    if config.prompt_model in PROMPT_MODELS:
        del given["prompt_model"]
    folders = {name: Path(value).expanduser() for name, value in given.items() if value}
    return {name: folder for name, folder in folders.items() if folder.name and folder.is_dir()}


def model_fingerprint(option: str, folder: Path) -> str:
    """SHA-256 over the configuration and, of each file of weights, its size and both ends."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        try:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with open(path, "rb") as file:
                digest.update(file.read(ENDS_BYTES))
                file.seek(max(0, size - ENDS_BYTES))
                digest.update(file.read(ENDS_BYTES))
        except OSError as error:
            raise InputError(f"{option} {path}: {error.strerror}, wanted a readable file") from None
    return digest.hexdigest()


def fingerprint(option: str, path: str) -> str:
    if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
        raise InputError(f"{option} {path}: found a device or a pipe, wanted a file")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        raise InputError(f"{option} {path}: found a folder, wanted a file") from None
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}, wanted a readable file") from None


def option_at(path: str) -> str:
    """The option that sets a field, or the field itself."""
    return next((option.name for option in OPTIONS if path in option.paths), path)


def check(config: Config) -> None:
    """Raise InputError for a value out of range, or for values that do not go together."""
    for option in OPTIONS:
        for path in option.paths:
            check_range(option, get(config, path))
    if config.reward == "gold" and config.model != TINY:
        raise InputError(
            f"--reward: found 'gold' with --model {config.model}, wanted --model tiny: only its "
            "world has a scorer"
        )
    if config.reward == "pairwise" and config.dpo.loss == "robust":
        raise InputError(
            "--loss: found 'robust' with --reward pairwise, wanted sigmoid, hinge, ipo or simpo: "
            "robust takes every label for certain but flipped, pairwise gives its probability"
        )
    check_log(config)
    check_reward_options(config)
    if config.judge.stop == "line" and config.judge.mode != "sampled":
        raise InputError(
            f"--judge-stop: found 'line' with --judge {config.judge.mode}, wanted --judge sampled: "
            "the others write no score line"
        )
    if config.candidates.temperature == 0:
        raise InputError(
            "--temperature: found 0, wanted a number above 0: greedy answers to one prompt are all "
            "the same, and equal answers make no pair"
        )
    check_pair_options(config)
    check_adapter_options(config)
    check_evaluation_options(config)
    check_mixing_options(config)


def check_mixing_options(config: Config) -> None:
    """Refuse real rows where there are none, and their weight where nothing is weighted by it."""
    share, weight = config.mix_real, config.dpo.real_weight
    if share and config.model != TINY and not (config.ift_file or config.eft_file):
        raise InputError(
            f"--mix-real: found {share:g} without --ift and --eft, wanted one of them: its rows "
            "are what is mixed in"
        )
    if weight != DpoConfig.real_weight and config.reward == "best-of-n":
        raise InputError(
            f"--real-weight: found {weight:g} with --reward best-of-n, wanted another reward: "
            "there real rows count like the others"
        )
    if weight != DpoConfig.real_weight and not share:
        raise InputError(f"--real-weight: found {weight:g} alone, wanted --mix-real too")


def check_log(config: Config) -> None:
    for name in config.log:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--log: found {name!r}, which is not installed, wanted it (pip install {name})"
            )


def check_evaluation_options(config: Config) -> None:
    """Refuse evaluations without rows to make them on, and the other way round."""
    if config.eft_eval_file and not config.evaluation.num_judged:
        raise InputError(
            "--eft-eval: found with --eval-judged 0, which measures no judge, wanted a number "
            "above 0"
        )
    share, every, patience = config.held_out_pairs, config.dpo.evaluate_every, config.dpo.patience
    if share and not every:
        raise InputError(f"--held-out-pairs: found {share:g} alone, wanted --evaluate-every too")
    if every and not share:
        raise InputError(f"--evaluate-every: found {every} alone, wanted --held-out-pairs too")
    if patience and not every:
        raise InputError(f"--patience: found {patience} alone, wanted --evaluate-every too")
    if config.reference == "sft" and config.dpo.loss == "simpo":
        raise InputError("--reference: found 'sft' with --loss simpo, which has no reference")


def check_adapter_options(config: Config) -> None:
    """Refuse what needs an adapter without one, and an adapter with what cannot have one."""
    lora, given = config.lora, (Path(config.model) / ADAPTER_FILE).is_file()
    if lora.rank and given:
        raise InputError(
            f"--lora-rank: found {lora.rank} with --model {config.model}, which is an adapter; "
            "wanted none: that one is trained on"
        )
    if lora.alpha is not None and not lora.rank:
        raise InputError("--lora-alpha: found without --lora-rank, wanted both")
    if lora.base_dtype is not None and not (lora.rank or given):
        raise InputError(
            f"--base-dtype: found {lora.base_dtype!r} without --lora-rank, wanted --lora-rank: "
            "such matrices are frozen"
        )
    if lora.base_dtype == "fp8" and config.dtype == "float16":
        raise InputError("--dtype: found float16 with --base-dtype fp8, wanted bfloat16 or float32")
    if (lora.rank or given) and config.reward_pairs_file is not None:
        raise InputError(
            "--reward-pairs: found with an adapter, wanted the weights themselves trained (no "
            "--lora-rank), or a finished one as --reward-model"
        )


def check_pair_options(config: Config) -> None:
    """Refuse what no pair of this reward could reach."""
    written = config.judge.sampling.n if config.judge.mode == "sampled" else 1
    own = {"random": config.judge.sampling.n, "pairwise": config.candidates.n - 1}
    samples = own.get(config.reward, written if config.reward in JUDGED else 1)
    if config.pairs.min_judgements > samples:
        raise InputError(
            f"--min-judgements: found {config.pairs.min_judgements}, wanted at most the {samples} "
            f"that an answer gets (--reward {config.reward}, --judge {config.judge.mode})"
        )
    if config.reward in ("pairwise", "constitution") and config.pairs.min_margin > 1:
        raise InputError(
            f"--min-margin: found {config.pairs.min_margin:g}, wanted at most 1: scores under "
            f"--reward {config.reward} lie between 0 and 1"
        )


def check_reward_options(config: Config) -> None:
    """Options of one reward are refused with another; `model` has exactly one of its two."""
    owners = {
        "reward_model": "model",
        "reward_pairs_file": "model",
        "constitution_file": "constitution",
        "revisions": "constitution",
    }
    for name, owner in owners.items():
        if getattr(config, name) != getattr(Config, name) and config.reward != owner:
            raise InputError(
                f"{option_at(name)}: found with --reward {config.reward}, wanted --reward {owner}"
            )
    if config.reward != "model":
        return
    given = [name for name in ("reward_model", "reward_pairs_file") if getattr(config, name)]
    if len(given) != 1:
        raise InputError(
            f"--reward model: found {'both' if given else 'none'} of --reward-model and "
            "--reward-pairs, wanted exactly one"
        )


def check_range(option: Option, value: Any) -> None:
    if value is not None:
        option.check(value)


@dataclass(frozen=True)
class Difference:
    """One option in which two runs differ, with its value there (on disk) and here (asked for)."""

    option: str
    there: Any
    here: Any

    @property
    def of_content(self) -> bool:
        """Whether the values are SHA-256 of a file."""
        return self.option.endswith(CONTENT)


def differences(there: Config | dict[str, Any], here: Config) -> list[Difference]:
    """What differs between a run on disk and the one asked for, in the order of the fields.

    A field that came after the run on disk has its default there.
    """
    old = there.to_json() if isinstance(there, Config) else there
    new = flatten(here.to_json())
    old = flatten(Config().to_json()) | flatten(old)
    paths = [path for path in [*new, *(old.keys() - new.keys())] if path not in NOT_COMPARED]
    found = [
        Difference(named(path), old.get(path), new.get(path))
        for path in paths
        if plain(old.get(path)) != plain(new.get(path))
    ]
    return list({each.option: each for each in found}.values())


def named(path: str) -> str:
    if path.startswith("inputs."):
        return option_at(path.removeprefix("inputs.")) + CONTENT
    return option_at(path)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> leaf."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat


def plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def from_json(row: dict[str, Any]) -> Config:
    """The tree that `to_json` wrote. Raises InputError naming a field that is unknown."""
    return build(Config, row)


def build(kind: type, row: dict[str, Any]) -> Any:
    defaults = kind()
    fields = {each.name for each in dataclasses.fields(kind)}
    unknown = sorted(row.keys() - fields)
    if unknown:
        raise InputError(f"{CONFIG_FILE}: found the field {unknown[0]!r}, which is not known")
    return kind(**{name: rebuilt(getattr(defaults, name), value) for name, value in row.items()})


def rebuilt(default: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(default):
        return build(type(default), value)
    return tuple(value) if isinstance(value, list) else value


def read_config(folder: Path) -> dict[str, Any]:
    """The run part of a folder's `config.json`, as plain values for `differences`."""
    return read_json(folder / CONFIG_FILE).get("run", {})


def versions() -> dict[str, str]:
    """What the run was made with."""
    names = ("torch", "triton", "transformers", "numpy")
    found = {name: installed(name) for name in names}
    return {"srlm_fast": __version__, "python": platform.python_version(), **found}


def installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
