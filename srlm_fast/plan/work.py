"""Tokens that the stages of a run read, write and train on (loop/rewarding.py), by its options.

Prefixes are shared: a prompt is read once for its answers, a rubric once for all judgements, an
answer once for all that is said of it, and a trained pair has its prompt once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from srlm_fast.config import JUDGED, OWN_ANSWERS, TINY, Config

from .counts import Seeds, counted, known, seeds_of
from .lengths import (
    PRINCIPLE_TOKENS,
    PROMPT_TOKENS,
    RUBRIC_TOKENS,
    TAIL_TOKENS,
    answer_tokens,
    judgement_tokens,
    pair_tokens,
)

PAIR_SHARE = 0.75  # prompts that give a pair
KEPT_SHARE = 0.5  # of the prompts that the model makes


@dataclass(frozen=True)
class Work:
    """Tokens of a stage: `read` ones at once by the sampler, `generated` ones one after another, of
    `sequences` that may run side by side with a mean of `context` tokens, `scored` ones forward in
    training's form, `trained` ones forward and back, `steps` optimizer steps.
    """

    name: str
    read: float = 0
    generated: float = 0
    sequences: float = 0
    context: float = 1
    scored: float = 0
    trained: float = 0
    steps: float = 0


def seed_tokens(config: Config, seeds: Seeds) -> float:
    """Of the rows that M1 is taught."""
    ift = PROMPT_TOKENS + answer_tokens(config)
    return seeds.ift * ift + seeds.eft * (
        RUBRIC_TOKENS + ift + TAIL_TOKENS + judgement_tokens(config)
    )


def first_work(config: Config) -> list[Work]:
    """The stages before the first round: building EFT, teaching and measuring M1."""
    config = counted(config)
    seeds, batch = seeds_of(config), config.sft.batch_rows
    ift = seed_tokens(config, replace(seeds, eft=0))
    taught = config.sft.epochs * seed_tokens(config, seeds)
    found = []
    if seeds.ranked:
        judging = judge_work(config, seeds.ranked, seeds.ranked / 4, "sampled")
        found = [
            Work("IFT alone", trained=config.sft.epochs * ift, steps=seeds.ift / batch),
            replace(judging, name="EFT judge"),
        ]
    if taught:
        rows = config.sft.epochs * (seeds.ift + seeds.eft)
        found.append(Work("SFT", trained=taught, steps=rows / batch))
    return [*found, measure_work(config, first=True)]


def round_work(config: Config) -> list[Work]:
    """The stages of one round, in their order."""
    config = counted(config)
    judging = {
        "pairwise": compare_work,
        "constitution": revise_work,
        "model": score_work,
        **dict.fromkeys(JUDGED, candidate_judge_work),
    }
    found = [] if config.prompts_file else [prompt_work(config)]
    found.append(answer_work(config))
    if config.reward in judging:
        found.append(judging[config.reward](config))
    return [*found, *learn_work(config), measure_work(config)]


def prompt_work(config: Config) -> Work:
    """Each request shows other demonstrations."""
    requests = config.num_prompts / KEPT_SHARE
    shown = (config.prompts.seed_shots + config.prompts.made_shots) * PROMPT_TOKENS
    made = requests * PROMPT_TOKENS
    at_once = min(requests, config.prompts.batch_requests)
    return Work("prompts", requests * shown, made, at_once, shown + PROMPT_TOKENS / 2)


def answer_work(config: Config) -> Work:
    each = 1 if config.reward == "constitution" else config.candidates.n
    return sampled_work("answers", config, config.num_prompts, each)


def sampled_work(name: str, config: Config, prompts: float, each: int) -> Work:
    answer = answer_tokens(config)
    read, sequences = prompts * PROMPT_TOKENS, prompts * each
    return Work(name, read, sequences * answer, sequences, PROMPT_TOKENS + answer / 2)


def candidate_judge_work(config: Config) -> Work:
    answers = config.num_prompts * config.candidates.n
    return judge_work(config, answers, config.num_prompts, config.judge.mode)


def judge_work(config: Config, answers: float, prompts: float, mode: str) -> Work:
    """Judgements of `answers` to `prompts`: several samples, one, or a score read at once."""
    answer, said = answer_tokens(config), judgement_tokens(config)
    samples = {"sampled": config.judge.sampling.n, "expected": 1, "direct": 0}[mode]
    rubric = RUBRIC_TOKENS * bool(answers)
    read = rubric + prompts * PROMPT_TOKENS + answers * (answer + TAIL_TOKENS)
    context = RUBRIC_TOKENS + PROMPT_TOKENS + answer + TAIL_TOKENS + said / 2
    return Work("judge", read, answers * samples * said, answers * samples, context)


def compare_work(config: Config) -> Work:
    """Both orders of every two answers; the first one shown is read once for all the others."""
    n, answer = config.candidates.n, answer_tokens(config)
    second = n * (n - 1) * (answer + TAIL_TOKENS)
    read = config.num_prompts * (PROMPT_TOKENS + n * answer + second)
    return Work("compare", RUBRIC_TOKENS + read)


def revise_work(config: Config) -> Work:
    """A critique and a revision after the other, each behind the answer before."""
    steps, answer = config.revisions, answer_tokens(config)
    said = judgement_tokens(config) or config.judge.sampling.max_tokens / 2
    asked = PRINCIPLE_TOKENS + PROMPT_TOKENS + answer
    chains = config.num_prompts * steps
    read, written = chains * (2 * asked + said), chains * (said + answer)
    return Work("revise", read, written, 2 * chains, asked + (said + answer) / 2)


def score_work(config: Config) -> Work:
    """A reward model of about the model's size reads every prompt with its answer."""
    answers = config.num_prompts * config.candidates.n
    return Work("reward", scored=answers * (PROMPT_TOKENS + answer_tokens(config)))


def learn_work(config: Config) -> list[Work]:
    """Of the mean round, where rounds keep the rows of earlier ones."""
    answer, learnt = answer_tokens(config), 1 + (kept_rounds(config) if keeps_all(config) else 0)
    if config.reward == "best-of-n":
        rows = config.num_prompts * learnt
        real, tokens = real_work(config, rows)
        tokens, epochs = tokens + rows * (PROMPT_TOKENS + answer), config.sft.epochs
        steps = (rows + real) * epochs / config.sft.batch_rows
        return [Work("train", trained=tokens * epochs, steps=steps)]
    own = PAIR_SHARE * config.num_prompts
    pairs, each, epochs = own * learnt, pair_tokens(config, answer), config.dpo.epochs
    tokens = pairs * each + real_work(config, pairs)[1]
    train = Work("train", trained=tokens * epochs, steps=pairs * epochs / config.dpo.batch_pairs)
    return [Work("reference", scored=own * (1 + kept_rounds(config)) * each), train]


def keeps_all(config: Config) -> bool:
    return config.accumulate == "yes"


def kept_rounds(config: Config) -> float:
    """Rows of earlier rounds in the mean round, in rounds: those of all before it, or its share of
    one in a draw from all.
    """
    before = range(config.iterations)
    kept = {
        "no": 0.0,
        "yes": float(sum(before)),
        "subsample": sum(number / (number + 1) for number in before),
    }
    return kept[config.accumulate] / max(1, config.iterations)


def real_work(config: Config, others: float) -> tuple[float, float]:
    """Real rows beside so many others, and their tokens: those of the mean seed."""
    seeds = seeds_of(config)
    number = seeds.ift + seeds.eft
    rows = config.mix_real / (1 - config.mix_real) * others
    if config.reward == "best-of-n" and keeps_all(config) and not rows:
        rows = number
    return rows, rows * seed_tokens(config, seeds) / max(1, number)


def measure_work(config: Config, first: bool = False) -> Work:
    """Held-out answers, judged by M1 where no program scores them; the judge on answers of known
    order; and what the model (the first one: M1) thinks of its own answers.
    """
    held, mode, given = config.evaluation, config.judge.mode, known(config)
    by_judge = held.num_prompts * held.samples * (config.model != TINY)
    parts = [
        sampled_work("measure", config, held.num_prompts, held.samples),
        judge_work(config, by_judge, min(by_judge, held.num_prompts), mode),
        judge_work(config, given.answers, given.prompts, mode),
        own_work(config, first),
    ]
    return joined("measure", parts)


def own_work(config: Config, first: bool) -> Work:
    """M1 has judged all of its answers already where it is the judge of all models, and nothing to
    be compared with.
    """
    own = min(OWN_ANSWERS, config.evaluation.num_prompts)
    if config.reward in (*JUDGED, "constitution"):
        own *= not (first and config.model != TINY)
        return judge_work(config, own, own, config.judge.mode)
    compares = not first and config.reward in ("pairwise", "model")
    one = replace(config, num_prompts=own, candidates=replace(config.candidates, n=2))
    if not compares:
        return Work("own")
    return compare_work(one) if config.reward == "pairwise" else score_work(one)


def joined(name: str, parts: list[Work]) -> Work:
    """Of stages one after another; their sequences have the context of the one that writes most."""
    most = max(parts, key=lambda part: part.generated)
    return Work(
        name,
        read=sum(part.read for part in parts),
        generated=sum(part.generated for part in parts),
        sequences=sum(part.sequences for part in parts),
        context=most.context,
        scored=sum(part.scored for part in parts),
    )
