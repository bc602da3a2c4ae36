"""Two models head to head, as text: the figures of `comparison.json` with their intervals."""

from __future__ import annotations

from typing import Any

from .judge_text import interval, table
from .table import figure

Row = tuple[str, ...]
HEAD = ("", "", "95 % interval", "n")
KINDS = {
    "pairwise": "which compared both answers in both orders (a disagreement is a tie)",
    "sampled": "which scored each answer by a rubric",
    "expected": "which scored each answer by a rubric (the mean over the score's digits)",
    "direct": "which scored each answer by a rubric without a justification",
}


def compare_text(made: dict[str, Any]) -> str:
    """The table and the lines around it."""
    a, b = labels(made)
    lines = [
        "",
        f"{a} against {b} on {made['prompts']} prompts, {answers(made)}",
        *table([HEAD, *outcome_rows(made, a, b), *control_rows(made, a)]),
        "",
        *notes(made),
        made["judge_is"],
    ]
    return "\n".join(lines)


def labels(made: dict[str, Any]) -> tuple[str, str]:
    """What A and B are called: M3 and M1, or A and B with names that are the same or long."""
    names = [made[side]["name"] for side in ("a", "b")]
    if names[0] == names[1] or max(map(len, names)) > 24:
        names = [f"{side} ({name})" for side, name in zip("AB", names, strict=True)]
    return names[0], names[1]


def answers(made: dict[str, Any]) -> str:
    count = made["samples"]
    how = {"all": "all against all", "same": "the k-th against the k-th"}[made["match"]]
    return "one answer each" if count == 1 else f"{count} answers each, {how}"


def outcome_rows(made: dict[str, Any], a: str, b: str) -> list[Row]:
    found = made["figures"]
    shares = found["shares"] or {}
    named = {"win": f"{a} wins", "tie": "ties", "loss": f"{b} wins"}
    rows = [
        share_row(title, {"share": shares.get(k), "interval": found["intervals"][k], "n": found[k]})
        for k, title in named.items()
    ]
    controlled = found["length_controlled"] or {"win_rate": None, "interval": None}
    return [
        *rows,
        rate_row(f"win rate of {a}, a tie is half", found, found["n"]),
        rate_row("the same, length controlled", controlled, found["n"]),
    ]


def rate_row(title: str, found: dict[str, Any], n: int) -> Row:
    return (title, figure(found["win_rate"], ".1%"), interval(found["interval"], ".1%"), str(n))


def control_rows(made: dict[str, Any], a: str) -> list[Row]:
    """What length and place alone would have said."""
    found = made["figures"]
    only, position = found["length_only"], found["position"]
    rows = [
        rate_row(f"win rate of {a} by length alone", only, only["n"]),
        share_row("the longer answer wins", found["longer_wins"]),
    ]
    if position is not None:
        rows += [
            share_row("the two orders disagree", position["disagree"]),
            share_row("the answer shown first is preferred", position["first"]),
        ]
    return rows


def share_row(title: str, found: dict[str, Any]) -> Row:
    cells = figure(found["share"], ".1%"), interval(found["interval"], ".1%")
    return (title, *cells, str(found["n"]))


def notes(made: dict[str, Any]) -> list[str]:
    """Lengths, and what took no part."""
    found, (a, b) = made["figures"], labels(made)
    mean, controlled = found["length_mean"], found["length_controlled"]
    lines = []
    if mean:
        lines.append(f"mean length: {a} {mean['a']:.0f}, {b} {mean['b']:.0f} characters")
    if controlled and controlled["extrapolated"]:
        lines.append("one model's answers are longer throughout: length controlled is a guess")
    if found["identical"]:
        lines.append(f"ties of one and the same text: {found['identical']}")
    unread = [f"{name.replace('_', ' ')} {count}" for name, count in found["unread"].items()]
    lines.append(f"comparisons that could not be read: {', '.join(unread) or 'none'}")
    if made["unanswered"]:
        lines.append(f"prompts without answers of both, too long: {made['unanswered']}")
    if any(made["borrowed"].values()):
        count = " and ".join(str(n) for n in made["borrowed"].values())
        lines.append(f"prompts with the answers that the run itself sampled: {count}")
    return lines


def judge_sentence(made: dict[str, Any]) -> str:
    """What the judge is, in a sentence."""
    judge = made["judge"]
    if judge["kind"] == "gold":
        return "The judge is the program of the tiny world, which knows the right answers."
    name = judge["name"] if judge["run"] is None else f"{judge['name']} of {judge['run']}"
    if judge["kind"] == "model":
        return f"The judge is the reward model {name}: what it was trained to prefer."
    sides = " and ".join(side.upper() for side in judge["is"])
    whose = f" It is {sides} itself, and a model may favour its own answers." if sides else ""
    how = KINDS[judge["kind"]]
    return f"The judge is {name}, {how}: {judge['name']}'s own opinion, no person's.{whose}"
