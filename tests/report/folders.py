"""A run folder as the loop leaves it, made up, with all that a run can hold; on request with text
that tries to break the page.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

HOSTILE = (
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "{{ 7 * 7 }} {% raw %} ${1}",
    "\u2028 line separator, lone surrogate \udc80, emoji 🦜, עברית, \x00 and 'quotes' \"\"",
    "]]> --> <!--",
)
Row = dict[str, Any]
Writer = Callable[[random.Random], str]


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def plain_answer(rng: random.Random) -> str:
    return f"Apple, pear and {rng.choice('abc')} {rng.randrange(9)}."


def plain_verdict(rng: random.Random) -> str:
    return f"It is {rng.choice(('clear', 'short', 'right'))}."


def make_round(
    folder: Path,
    num_prompts: int,
    rng: random.Random,
    reward: str = "self",
    answer: Writer = plain_answer,
    verdict: Writer = plain_verdict,
    prompts: Sequence[str] | None = None,
) -> None:
    """The rows of a round, as a kind of `--reward` leaves them."""
    rows: dict[str, list[Row]] = {"prompts": [], "candidates": [], "judgements": [], "pairs": []}
    rows |= {"comparisons": [], "revisions": [], "sft": [], "dropped": []}
    for number in range(num_prompts):
        text = prompts[number % len(prompts)] if prompts else f"List {number} fruits."
        prompt = {"prompt_id": f"p{number}", "text": text, "source": "self-made"}
        if number == 1:
            prompt |= {"source": "file", "turns": [{"role": "user", "content": "Hello, you."}]}
        rows["prompts"].append(prompt)
        add_answers(rows, prompt, rng, reward, answer, verdict)
    for name, found in rows.items():
        if found or name in ("prompts", "candidates", "pairs", "dropped"):
            write_jsonl(folder / f"{name}.jsonl", found)


def add_answers(
    rows: dict[str, list[Row]],
    prompt: Row,
    rng: random.Random,
    reward: str,
    answer: Writer,
    verdict: Writer,
) -> None:
    prompt_id = prompt["prompt_id"]
    texts = [answer(rng) for _ in range(2 if reward == "constitution" else 4)]
    rows["candidates"] += [
        {
            "prompt_id": prompt_id,
            "index": index,
            "text": text,
            "token_ids": list(range(1 + len(text) // 4)),
            "logprob": -3.5,
            "finish_reason": "stop" if index else "length",
        }
        for index, text in enumerate(texts)
    ]
    scores = [[rng.choice((None, 1.0, 2.0, 3.0, 4.0, 5.0)) for _ in range(3)] for _ in texts]
    if reward in ("self", "frozen", "model", "best-of-n"):
        rows["judgements"] += judged(prompt_id, scores, rng, verdict)
    elif reward == "pairwise":
        rows["comparisons"] += compared(prompt_id, rng)
    elif reward == "constitution":
        critique = {"principle": 2, "critique": "Too vague by half.", "finish_reason": "stop"}
        chain = {"prompt_id": prompt_id, "candidates": 2, "critiques": [critique]}
        rows["revisions"].append(chain | {"reason": None})
        scores = [[0.0], [1.0]]
    elif reward == "random" and prompt_id.endswith("3"):
        scores = [[1.0]] * 4
    means = [mean(each) for each in scores]
    known = [(value, index) for index, value in enumerate(means) if value is not None]
    if len(known) > 1 and max(known)[0] > min(known)[0]:
        best, worst = max(known), min(known)
        rows["pairs"].append(pair(prompt, texts, scores, best, worst))
        if reward == "best-of-n":
            taught = {"prompt_id": prompt_id, "prompt": prompt["text"], "index": best[1]}
            rows["sft"].append(taught | {"response": texts[best[1]], "score": best[0]})
    else:
        reason = "tie" if len(known) > 1 else "one_judged" if known else "not_judged"
        rows["dropped"].append({"prompt_id": prompt_id, "reason": reason})


def mean(scores: Sequence[float | None]) -> float | None:
    read = [score for score in scores if score is not None]
    return sum(read) / len(read) if read else None


def judged(
    prompt_id: str, scores: Sequence[Sequence[float | None]], rng: random.Random, verdict: Writer
) -> list[Row]:
    return [
        {
            "prompt_id": prompt_id,
            "candidate": index,
            "sample": sample,
            "text": f"{verdict(rng)} Score: {score}",
            "score": score,
            "status": "MISSING" if score is None else "OK",
            "audit": "",
        }
        for index, each in enumerate(scores)
        for sample, score in enumerate(each)
    ]


def compared(prompt_id: str, rng: random.Random) -> list[Row]:
    return [
        {
            "prompt_id": prompt_id,
            "first": first,
            "second": second,
            "forward": 0.7,
            "backward": 0.6,
            "mass": 0.99,
            "score": round(rng.random(), 2),
            "status": "OK",
        }
        for first, second in combinations(range(4), 2)
    ]


def pair(
    prompt: Row,
    texts: Sequence[str],
    scores: Any,
    best: tuple[float, int],
    worst: tuple[float, int],
) -> Row:
    asked = {"role": "user", "content": prompt["text"]}
    sides = [[asked, {"role": "assistant", "content": texts[i]}] for _, i in (best, worst)]
    return {
        "prompt": prompt["text"],
        "prompt_id": prompt["prompt_id"],
        "chosen": sides[0],
        "rejected": sides[1],
        "score_chosen": best[0],
        "score_rejected": worst[0],
        "scores": scores,
        "chosen_index": best[1],
        "rejected_index": worst[1],
    }


def judge_figures() -> Row:
    return {
        "pairwise_accuracy": 0.765,
        "pairwise_untied": 0.78,
        "five_best": 0.4,
        "exact_match": 0.21,
        "spearman": 0.514,
        "kendall": 0.43,
        "ties": 0.08,
        "pairwise_interval": [0.71, 0.82],
        "intervals": {"pairwise_accuracy": [0.71, 0.82], "spearman": [0.45, 0.58]},
        "n": {"pairwise_accuracy": 563, "spearman": 120},
        "length_only": {"pairwise_accuracy": 0.523, "ties": 0.017},
    }


def collapse(number: int) -> Row:
    return {
        "distinct_1": 0.12 - 0.01 * number,
        "distinct_2": 0.31,
        "distinct_3": 0.52,
        "self_bleu": 0.3 + 0.05 * number,
        "unique": 0.9,
        "entropy": 1.01 / number,
        "end_of_text": 1.0,
        "length_mean": 31.5 - number,
        "length_p5": 4,
        "length_p50": 28,
        "length_p95": 80,
        "tokens_mean": 9.0,
        "repeated_openings": 0.1 * number,
        "n": 400,
    }


def human_text(number: int) -> Row:
    histogram = [[10 * bin, (7 * bin * number) % 40 + 3] for bin in range(12)]
    figures = {"perplexity": 20.0 + 5 * number, "perplexity_p95": 60.0 + 20 * number}
    return figures | {"n": 100, "tokens": 9000, "histogram": histogram}


def summary(warned: bool = True) -> Row:
    models = [
        {
            "name": f"M{number}",
            "eval": {
                "score": score,
                "n": 400,
                "interval": [score - 0.09, score + 0.09],
                "judged_by": "program",
                "bits": {"relevant": 0.97, "correct": 0.58},
            },
            "judge": judge_figures(),
            "collapse": collapse(number),
            "human_text": human_text(number),
            "seconds": {"train": 9.5, "measure": 4.0},
            "length_mean": 31.5 - number,
        }
        for number, score in ((1, 3.36), (2, 3.70), (3, 3.79))
    ]
    entropy = {
        "name": "entropy_fall",
        "figure": 0.51,
        "limit": 0.808,
        "text": "output entropy fell by 50 %",
    }
    rounds = [
        {
            "name": name,
            "prompts": 512,
            "candidates": 2048,
            "judgements": 6144,
            "unparsed": 12,
            "statuses": {"ok": 6132, "missing": 12},
            "pairs": pairs,
            "ties": 512 - pairs,
            "dropped": {"tie": 512 - pairs, "identical": 0, "one_judged": 0},
            "rejected_prompts": {"duplicate": 90, "similar": 12},
            "seconds": {"prompts": 4.5, "sample": 2.2, "judge": 17.4, "train": 5.1},
            "tokens_per_second": {"sample_and_judge": 12000.0},
            "collapse": collapse(2) | {"n": 2048},
            "judge_on_own": judge_figures(),
            "score_mean": 3.4,
            "logratios": {"chosen": 0.2, "rejected": -0.7, "margin": 0.9},
            "warnings": [entropy] if warned and name == "M2" else [],
            "mixed": {"real": 40, "earlier": 478},
        }
        for name, pairs in (("M2", 478), ("M3", 407))
    ]
    return {"finished": True, "seed": 0, "models": models, "rounds": rounds, "seconds": 91.5}


def steps(number: int, num_steps: int = 30) -> list[Row]:
    dpo = number > 1
    return [
        {
            "stage": f"m{number}/train",
            "step": step,
            "num_steps": num_steps,
            "loss": 0.69 - 0.01 * step,
            "learning_rate": 1e-4,
            "num_tokens": 500,
            "seconds": 0.1,
            "margin": 0.02 * step if dpo else None,
            "chosen_logratio": 0.01 * step if dpo else None,
            "rejected_logratio": -0.03 * step if dpo else None,
        }
        for step in range(num_steps)
    ]


def stages(number: int) -> list[Row]:
    """What the stages of a round wrote down: memory, and their seconds."""
    names = ("train", "measure") if number == 1 else ("prompts", "answers", "pairs", "train")
    held = {"weights_bytes": 2**28, "kv_bytes": 2**30, "optimizer_bytes": 2**29}
    seen = {"process": 1, **held, "held_bytes": 2**31, "peak_bytes": 2**31 + 2**28}
    return [
        row
        for name in names
        for row in (
            {"stage": f"m{number}/{name}", "phase": "sampling", "memory": seen},
            {"stage": f"m{number}/{name}", "phase": "end", "memory": seen},
            {"stage": f"m{number}/{name}", "seconds": 3.25},
        )
    ]


def make_folder(
    folder: Path,
    num_prompts: int = 30,
    hostile: bool = False,
    reward: str = "self",
    answer: Writer = plain_answer,
    verdict: Writer = plain_verdict,
    warned: bool = True,
) -> Path:
    """Write a finished run into `folder`."""
    rng = random.Random(0)
    prompts = HOSTILE if hostile else None
    if hostile:
        answer = verdict = HostileWriter()
    for name in ("m2", "m3"):
        make_round(folder / name, num_prompts, rng, reward, answer, verdict, prompts)
    for number in (1, 2, 3):
        answers = [{"prompt_id": f"h{i}", "text": "x" * (i + number)} for i in range(21)]
        write_jsonl(folder / f"m{number}" / "evaluation.jsonl", answers)
    run = {"model": "tiny", "recipe": "default", "reward": reward, "seed": 0, "dpo": {"beta": 0.1}}
    (folder / "config.json").write_text(json.dumps({"run": run, "versions": {"torch": "2.13"}}))
    (folder / "summary.json").write_text(json.dumps(summary(warned)))
    rows = [row for number in (1, 2, 3) for row in (*stages(number), *steps(number))]
    write_jsonl(folder / "metrics.jsonl", rows)
    return folder


class HostileWriter:
    """One text after the other."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, rng: random.Random) -> str:
        self.number += 1
        return HOSTILE[self.number % 4]
