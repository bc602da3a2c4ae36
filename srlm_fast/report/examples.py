"""Examples to browse: a prompt, its candidates, their judgements, which became the pair."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from srlm_fast.records import read_jsonl

PER_ROUND = 300
LONGEST_TEXT = 1200


def read_examples(round_folders: list[Path]) -> dict[str, Any]:
    """What the page's script browses. Long texts are cut and large rounds thinned, both said."""
    rounds = {path.name.upper(): round_examples(path) for path in round_folders}
    return {
        "rounds": {name: thinned(examples) for name, examples in rounds.items() if examples},
        "counts": {name: len(examples) for name, examples in rounds.items() if examples},
    }


def round_examples(folder: Path) -> list[dict[str, Any]]:
    """One entry per prompt that has candidates, in the order of the prompts."""
    candidates = defaultdict(list)
    for row in read_jsonl(folder / "candidates.jsonl"):
        candidates[row["prompt_id"]].append(row)
    judgements = defaultdict(list)
    for row in read_jsonl(folder / "judgements.jsonl"):
        judgements[row["prompt_id"], row["candidate"]].append(row)
    pairs = {row["prompt_id"]: row for row in read_jsonl(folder / "pairs.jsonl")}
    return [
        example(prompt, candidates[prompt["prompt_id"]], judgements, pairs)
        for prompt in read_jsonl(folder / "prompts.jsonl")
        if prompt["prompt_id"] in candidates
    ]


def example(
    prompt: dict[str, Any],
    candidates: list[dict[str, Any]],
    judgements: dict[tuple[str, int], list[dict[str, Any]]],
    pairs: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Keys are short because there are thousands: p prompt, s source, c candidates; of a candidate
    t text, f finish reason, r role in the pair, j judgements as [score, status, text]."""
    ordered = sorted(candidates, key=lambda row: row["index"])
    roles = pair_roles(pairs.get(prompt["prompt_id"]))
    return {
        "p": cut(prompt["text"]),
        "s": prompt.get("source", ""),
        "c": [
            {
                "t": cut(row["text"]),
                "f": row.get("finish_reason", ""),
                "r": roles.get(row["index"], ""),
                "j": [
                    [each.get("score"), each.get("status", ""), cut(each.get("text", ""))]
                    for each in judgements[prompt["prompt_id"], row["index"]]
                ],
            }
            for row in ordered
        ],
    }


def pair_roles(pair: dict[str, Any] | None) -> dict[int, str]:
    """Candidate index -> "chosen" or "rejected"."""
    if pair is None:
        return {}
    return {pair["chosen_index"]: "chosen", pair["rejected_index"]: "rejected"}


def cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " […]"


def thinned(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most PER_ROUND of them, evenly spread."""
    step = max(1, -(-len(examples) // PER_ROUND))
    return examples[::step]
