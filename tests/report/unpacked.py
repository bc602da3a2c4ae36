"""What the page's script reads, read here."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any


def part_of(page: str, name: str) -> str:
    """The content of a script element, as a browser delimits it."""
    found = re.search(rf'<script[^>]* id="{name}">(.*?)</script', page, re.S | re.I)
    assert found, name
    return found[1]


def data_of(page: str) -> dict[str, Any]:
    return json.loads(part_of(page, "data"))


def unpack(data: str) -> list[dict[str, Any]]:
    """The rows of a packed round, their texts in place."""
    made = json.loads(zlib.decompress(base64.b64decode(data)))
    texts = made["texts"]
    return [
        {
            "id": id_,
            "text": texts[text],
            "source": source,
            "turns": [(role, texts[said]) for role, said in turns],
            "outcome": outcome,
            "margin": margin,
            "answers": [
                {
                    "text": texts[text],
                    "finish": finish,
                    "role": role,
                    "mean": mean,
                    "judgements": [(score, status, texts[said]) for score, status, said in judged],
                }
                for text, finish, role, mean, judged in answers
            ],
            "comparisons": comparisons,
            "critiques": [(principle, texts[said]) for principle, said in critiques],
        }
        for id_, text, source, turns, outcome, margin, answers, comparisons, critiques in made[
            "rows"
        ]
    ]


def browsed(page: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of the page by the name of their round."""
    rounds = data_of(page)["rounds"]
    return {
        made["name"]: unpack(part_of(page, f"rows-{index}")) for index, made in enumerate(rounds)
    }
