"""What a run learns from and is measured on: the tiny world's own, or the user's files."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from srlm_fast.config import TINY, Config, get, option_at
from srlm_fast.data import PreferenceRow, same_text
from srlm_fast.data.fields import Skipped
from srlm_fast.data.held_out import HELD_OUT_SHARE, held_out_count
from srlm_fast.data.preferences import recognised_preferences
from srlm_fast.data.prompts import recognised_prompts
from srlm_fast.data.recognised import Recognised
from srlm_fast.data.seeds import recognised_eft, recognised_eft_eval, recognised_ift
from srlm_fast.judge import DEFAULT_RUBRIC, Rubric, read_rubric
from srlm_fast.judge.taught import fault_of
from srlm_fast.records import InputError, Message, Prompt, conversation_text

from .chat_template import read_chat_template
from .human_text import MOST_ROWS, split_human_text
from .state import derive_seed

ASKED = ("prompt", "text", "turns")  # `records.AskedRow`
Row = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """ift: {"prompt", "response"} and, where something was said before, "turns". eft: {"prompt",
    "response", "judgement", "score"}. eft_eval: {"prompt", "responses", "scores"}; both
    are `records.AskedRow`s. ranked: rows as of eft_eval from which EFT is still to be built.
    held_out: prompts that are never trained on. prompts: the user's own, empty when the model makes
    them. score_bits: a program's score of an answer with the points it is made of, where the world
    has one (used to measure, and by `--reward gold`). preferences: pairs to train a reward model
    on. chat_template: the user's own. files: what each of the user's files was recognised as, by
    option. human_text: rows as of ift that people wrote and no model learns from. remarks: what
    else a user should know.
    """

    ift: list[Row]
    eft: list[Row]
    eft_eval: list[Row]
    held_out: list[Prompt]
    prompts: list[Prompt]
    rubric: Rubric
    score_bits: Callable[[str, str], tuple[float, dict[str, bool]]] | None
    ranked: list[Row] = field(default_factory=list)
    preferences: list[PreferenceRow] = field(default_factory=list)
    chat_template: str | None = None
    files: dict[str, Recognised[Any]] = field(default_factory=dict)
    human_text: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What there is to say about all this, a line each."""
        files = [note for option, found in self.files.items() for note in found.notes(option)]
        return files + self.remarks

    @property
    def account(self) -> dict[str, dict[str, Any]]:
        """The user's files as figures, by option."""
        return {option: found.account() for option, found in self.files.items()}

    @property
    def has_seeds(self) -> bool:
        return bool(self.ift or self.eft)

    @property
    def demonstrations(self) -> list[str]:
        """Instructions shown to the model when it makes prompts: those that stand alone, where
        there are some.
        """
        alone = [row["prompt"] for row in self.ift if not row.get("turns")]
        return alone or [row["prompt"] for row in self.ift]

    @property
    def measured_on(self) -> list[str]:
        """Prompts that must never be trained on."""
        held_out = [text for p in self.held_out for text in {p.text: 0, p.conversation: 0}]
        return held_out + [row["prompt"] for row in self.eft_eval]


def gather(config: Config) -> Material:
    """Read what the options name; `--model tiny` brings what they do not. Raises InputError."""
    rubric = own_rubric(config)
    files = recognised(config, rubric)
    rows = {name: list(found.rows) for name, found in files.items()}
    judged = "eft_file" in files and files["eft_file"].form.judged is not None
    eft, seeds = rows.get("eft_file", []), rows.get("ift_file", [])
    given = Given(
        ift=seeds[: config.num_ift],
        eft=eft[: config.num_eft] if judged else [],
        ranked=[] if judged else eft,
        eft_eval=rows.get("eft_eval_file", []),
        held_out=rows.get("eval_prompts_file", [])[: config.evaluation.num_prompts],
        prompts=rows.get("prompts_file", []),
        human_text=rows.get("human_text_file", []),
    )
    found = (_tiny if config.model == TINY else _users)(config, given, rubric)
    text = given.human_text or found.human_text
    found = split_human_text(found, text, seeds, derive_seed(config.seed, "human text"))
    _check_left(config, found)
    return replace(
        found,
        preferences=_pairs_apart(found, rows.get("reward_pairs_file", [])),
        chat_template=read_chat_template(config.chat_template_file),
        files={option_at(name): each for name, each in files.items()},
    )


READERS: dict[str, Callable[..., Recognised[Any]]] = {
    "prompts_file": recognised_prompts,
    "ift_file": recognised_ift,
    "eft_file": recognised_eft,
    "eft_eval_file": recognised_eft_eval,
    "eval_prompts_file": recognised_prompts,
    "human_text_file": recognised_ift,
    "reward_pairs_file": recognised_preferences,
}


def recognised(config: Config, rubric: Rubric) -> dict[str, Recognised[Any]]:
    """The user's files by the fields that name them. Raises InputError that names the option."""
    found = {}
    eft = partial(recognised_eft, fault=partial(fault_of, rubric))
    readers: dict[str, Callable[..., Recognised[Any]]] = {**READERS, "eft_file": eft}
    for name, read in readers.items():
        path = get(config, name)
        if path is not None:
            try:
                found[name] = read(path, Skipped() if config.skip_bad else None)
            except InputError as error:
                raise InputError(f"{option_at(name)} {error}") from None
    return found


@dataclass(frozen=True)
class Given:
    """The rows of the user's files, empty where none was named."""

    ift: list[Row]
    eft: list[Row]
    ranked: list[Row]
    eft_eval: list[Row]
    held_out: list[Prompt]
    prompts: list[Prompt]
    human_text: list[Row]


def _users(config: Config, given: Given, rubric: Rubric) -> Material:
    if not given.prompts and not given.ift:
        raise InputError(
            "--prompts: not given, and no --ift to make prompts from; wanted a file of prompts"
        )
    seed = derive_seed(config.seed, "material")
    pool = given.prompts or [_prompt_of(row) for row in given.ift]
    held_out = given.held_out or _hold_out(pool, config.evaluation.num_prompts, seed)
    if given.eft_eval:
        eft, ranked, known = given.eft, given.ranked, given.eft_eval
    else:
        eft, eft_eval = _split_eft(given.eft, seed)
        ranked, ranked_eval = _split_ranked(given.ranked, seed)
        known = eft_eval + ranked_eval
    return _apart(
        Material(
            ift=given.ift,
            eft=eft,
            eft_eval=known[: config.evaluation.num_judged],
            ranked=ranked,
            held_out=held_out,
            prompts=given.prompts,
            rubric=rubric,
            score_bits=None,
        )
    )


def _tiny(config: Config, given: Given, rubric: Rubric) -> Material:
    """The embedded world; the user's files stand in for its own where they are given."""
    from srlm_fast.tiny import gold, seeds
    from srlm_fast.tiny.settings import SETTINGS

    def score_bits(prompt: str, response: str) -> tuple[float, dict[str, bool]]:
        found = gold.score(prompt, response)
        return float(found.score), found.bits

    seed = derive_seed(config.seed, "tiny")
    ift = given.ift or seeds.ift(seed, config.num_ift or SETTINGS.num_ift)
    taught = [row["prompt"] for row in ift]
    num_eft = 0 if given.ranked else config.num_eft or SETTINGS.num_eft
    eft = given.eft or seeds.eft(seed, num_eft, exclude=taught)
    count = config.evaluation.num_prompts
    held_out = seeds.heldout(count)
    if len(held_out) < count:
        raise InputError(
            f"--eval-count: found {count}, wanted at most {len(held_out)}: "
            "the tiny world has no more held-out instructions"
        )
    return _apart(
        Material(
            ift=ift,
            eft=eft,
            eft_eval=(given.eft_eval or seeds.eft_eval())[: config.evaluation.num_judged],
            ranked=given.ranked,
            held_out=given.held_out
            or [Prompt(f"held-out-{i}", text, "seed") for i, text in enumerate(held_out)],
            prompts=given.prompts,
            rubric=rubric,
            score_bits=score_bits,
            human_text=seeds.human_text(min(count, MOST_ROWS)),
        )
    )


def own_rubric(config: Config) -> Rubric:
    """The user's own rubric, or that of the world. Raises InputError."""
    from srlm_fast.tiny.rubric import RUBRIC

    return rubric_of(config, RUBRIC if config.model == TINY else DEFAULT_RUBRIC)


def rubric_of(config: Config, default: Rubric) -> Rubric:
    """The user's own rubric, or `default`. Raises InputError."""
    if config.rubric_file is None:
        return default
    try:
        return read_rubric(config.rubric_file, expected=config.judge.mode != "sampled")
    except InputError as error:
        raise InputError(f"--rubric {error}") from None


def _apart(found: Material) -> Material:
    """Without the rows that a model is measured on, but for case and white space: those of the same
    prompt, and those of a conversation that begins as a measured one does.
    """
    measured = _measured(found)

    def kept(rows: list[Row]) -> list[Row]:
        return [row for row in rows if measured.isdisjoint(_keys(_prompt_of(row)))]

    return replace(
        found,
        ift=kept(found.ift),
        eft=kept(found.eft),
        ranked=kept(found.ranked),
        prompts=[prompt for prompt in found.prompts if measured.isdisjoint(_keys(prompt))],
    )


def _pairs_apart(found: Material, rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """Without the conversations of many turns that a model is measured on; pairs of one turn are
    looked at, and told of, where they are split (`reward_model.split_preferences`).
    """
    measured = _measured(found)

    def asked(row: PreferenceRow) -> Prompt:
        return Prompt("", row["prompt"], "file", row["chosen"][:-2])

    return [row for row in rows if not asked(row).turns or measured.isdisjoint(_keys(asked(row)))]


def _measured(found: Material) -> set[str]:
    """What a model is measured on, at each turn of the user's where the turns are known."""
    measured = {same_text(text) for text in found.measured_on}
    return measured.union(*(_keys(prompt) for prompt in found.held_out))


def _prompt_of(row: Row) -> Prompt:
    turns: Sequence[Message] = row.get("turns") or ()
    text = row["text"] if "text" in row else row["prompt"]
    asked = Prompt("", text, "file", turns)
    return replace(asked, prompt_id=asked.conversation)


def _keys(prompt: Prompt) -> Iterable[str]:
    """What the conversation is at each of the user's turns, the first and the last among them."""
    messages = prompt.messages
    ends = [i for i, message in enumerate(messages, 1) if message["role"] == "user"]
    return {same_text(conversation_text(messages[:end])) for end in ends}


def _check_left(config: Config, found: Material) -> None:
    """Refuse files of which nothing is left to learn from."""
    files = {"--prompts": config.prompts_file, "--ift": config.ift_file, "--eft": config.eft_file}
    rows = {"--prompts": found.prompts, "--ift": found.ift, "--eft": found.eft or found.ranked}
    for option, path in files.items():
        if path and not rows[option]:
            raise InputError(
                f"{option} {path}: every prompt in it is held out for measuring, "
                "wanted more of them"
            )
    if config.eft_eval_file and not any(len(set(row["scores"])) > 1 for row in found.eft_eval):
        raise InputError(
            f"--eft-eval {config.eft_eval_file}: no prompt has answers of different score among "
            f"the {len(found.eft_eval)} that are taken, wanted answers whose order is known"
        )


def _hold_out(pool: Sequence[Prompt], most: int, seed: int) -> list[Prompt]:
    unique = list({same_text(prompt.conversation): prompt for prompt in pool}.values())
    return random.Random(seed).sample(unique, held_out_count(len(unique), most))


def _split_eft(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """(rows to train on, groups to measure the judge on): a tenth of the prompts that have answers
    of different score.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["prompt"]].append(row)
    ranked = [p for p, group in groups.items() if len({row["score"] for row in group}) > 1]
    count = round(len(ranked) * HELD_OUT_SHARE)
    measured = set(random.Random(seed).sample(ranked, count))
    eval_rows = [
        {
            **{name: value for name, value in groups[prompt][0].items() if name in ASKED},
            "responses": [row["response"] for row in groups[prompt]],
            "scores": [row["score"] for row in groups[prompt]],
        }
        for prompt in groups
        if prompt in measured
    ]
    return [row for row in rows if row["prompt"] not in measured], eval_rows


def _split_ranked(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """(rows to build EFT from, rows to measure the judge on): a tenth of the prompts whose answers
    people score apart. Rows of the same prompt stay together.
    """
    keys = [same_text(row["prompt"]) for row in rows]
    apart = {key: None for key, row in zip(keys, rows, strict=True) if len(set(row["scores"])) > 1}
    count = round(len(apart) * HELD_OUT_SHARE)
    measured = set(random.Random(seed).sample(list(apart), count))
    both = list(zip(keys, rows, strict=True))
    return (
        [row for key, row in both if key not in measured],
        [row for key, row in both if key in measured],
    )


def round_prompts(prompts: Sequence[Prompt], number: int, count: int, seed: int) -> list[Prompt]:
    """The user's prompts of round `number` (0, 1, …): the next `count` of a shuffled deck that is
    dealt again when used up.
    """
    deck: list[Prompt] = []
    deal = 0
    while len(deck) < (number + 1) * count:
        shuffled = list(prompts)
        random.Random(derive_seed(seed, "deal", deal)).shuffle(shuffled)
        deck += shuffled
        deal += 1
    dealt = deck[number * count : (number + 1) * count]
    return list({prompt.prompt_id: prompt for prompt in dealt}.values())
