"""A run folder as the loop leaves it, made up, with text that tries to break the page."""

from __future__ import annotations

import json
import random
from pathlib import Path

HOSTILE = (
    "</script><script>document.title = 'broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "{{ 7 * 7 }} {% raw %} ${1}",
    "\u2028 line separator, lone surrogate \udc80, emoji 🦜, עברית, \x00 and 'quotes' \"\"",
    "]]> --> <!--",
)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_round(folder: Path, num_prompts: int, rng: random.Random, hostile: bool) -> None:
    prompts, candidates, judgements, pairs = [], [], [], []
    for number in range(num_prompts):
        text = HOSTILE[number % len(HOSTILE)] if hostile else f"List {number} fruits."
        prompt_id = f"p{number}"
        prompts.append({"prompt_id": prompt_id, "text": text, "source": "self-made"})
        means = []
        for index in range(4):
            answer = HOSTILE[index] if hostile else f"Apple, pear and {rng.choice('abc')} {index}."
            candidates.append(
                {
                    "prompt_id": prompt_id,
                    "index": index,
                    "text": answer,
                    "token_ids": [1, 2, 3],
                    "logprob": -3.5,
                    "finish_reason": "stop" if index else "length",
                }
            )
            scores = [rng.choice([None, 1.0, 2.0, 3.0, 4.0, 5.0]) for _ in range(3)]
            for sample, score in enumerate(scores):
                status = "MISSING" if score is None else "OK"
                judgements.append(
                    {
                        "prompt_id": prompt_id,
                        "candidate": index,
                        "sample": sample,
                        "text": f"It is clear. Score: {score}",
                        "score": score,
                        "status": status,
                    }
                )
            read = [score for score in scores if score is not None]
            means.append(sum(read) / len(read) if read else None)
        known = [(mean, index) for index, mean in enumerate(means) if mean is not None]
        if len(known) > 1 and max(known)[0] > min(known)[0]:
            best, worst = max(known)[1], min(known)[1]
            texts = [row["text"] for row in candidates[-4:]]
            pairs.append(
                {
                    "prompt": text,
                    "prompt_id": prompt_id,
                    "chosen": [
                        {"role": "user", "content": text},
                        {"role": "assistant", "content": texts[best]},
                    ],
                    "rejected": [
                        {"role": "user", "content": text},
                        {"role": "assistant", "content": texts[worst]},
                    ],
                    "chosen_index": best,
                    "rejected_index": worst,
                }
            )
    for name, rows in (
        ("prompts", prompts),
        ("candidates", candidates),
        ("judgements", judgements),
        ("pairs", pairs),
    ):
        write_jsonl(folder / f"{name}.jsonl", rows)


def summary() -> dict:
    judge = {
        "pairwise_accuracy": 0.765,
        "five_best": 0.4,
        "exact_match": 0.21,
        "spearman": 0.514,
        "kendall": 0.43,
        "ties": 0.08,
    }
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
            "judge": judge,
            "collapse": {"distinct_1": 0.12, "entropy": 1.01, "n": 400},
            "seconds": {"train": 9.5, "measure": 4.0},
            "length_mean": 31.5 - number,
        }
        for number, score in ((1, 3.36), (2, 3.70), (3, 3.79))
    ]
    rounds = [
        {
            "name": name,
            "prompts": 512,
            "candidates": 2048,
            "judgements": 6144,
            "unparsed": 12,
            "pairs": pairs,
            "ties": 512 - pairs,
            "dropped": {"tie": 512 - pairs, "identical": 0, "one_judged": 0},
            "rejected_prompts": {"duplicate": 90, "similar": 12},
            "seconds": {"prompts": 4.5, "sample": 2.2, "judge": 17.4, "train": 5.1},
            "tokens_per_second": {"sample_and_judge": 12000.0},
            "collapse": {"distinct_1": 0.1, "entropy": 0.96, "n": 2048},
            "judge_on_own": judge,
        }
        for name, pairs in (("M2", 478), ("M3", 407))
    ]
    return {"finished": True, "seed": 0, "models": models, "rounds": rounds, "seconds": 91.5}


def make_folder(folder: Path, num_prompts: int = 30, hostile: bool = False) -> Path:
    """Write a finished run into `folder`."""
    rng = random.Random(0)
    for name in ("m2", "m3"):
        make_round(folder / name, num_prompts, rng, hostile)
    (folder / "m1").mkdir()
    run = {"model": "tiny", "recipe": "default", "reward": "self", "seed": 0, "dpo": {"beta": 0.1}}
    (folder / "config.json").write_text(json.dumps({"run": run, "versions": {"torch": "2.13"}}))
    (folder / "summary.json").write_text(json.dumps(summary()))
    steps = [
        {
            "stage": f"m{number}/train",
            "step": step,
            "loss": 0.69 - 0.01 * step,
            "margin": 0.02 * step,
        }
        for number in (2, 3)
        for step in range(30)
    ]
    write_jsonl(folder / "metrics.jsonl", steps)
    return folder
