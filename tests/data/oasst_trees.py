"""A few trees as Open Assistant exports them, with all fields, and what can be taken of them."""

from __future__ import annotations

import copy

LABELS = {
    "spam": {"value": 0.0, "count": 3},
    "lang_mismatch": {"value": 0.0, "count": 3},
    "pii": {"value": 0.0, "count": 3},
    "not_appropriate": {"value": 0.0, "count": 3},
    "hate_speech": {"value": 0.0, "count": 3},
    "sexual_content": {"value": 0.0, "count": 3},
    "quality": {"value": 0.75, "count": 3},
    "toxicity": {"value": 0.25, "count": 3},
    "humor": {"value": None, "count": 0},
    "helpfulness": {"value": 0.5, "count": 3},
    "creativity": {"value": 0.5, "count": 3},
    "violence": {"value": 0.0, "count": 3},
}
DETOXIFY = {
    "toxicity": 0.0004,
    "severe_toxicity": 3.2e-05,
    "obscene": 0.0001,
    "identity_attack": 0.0001,
    "insult": 0.0002,
    "threat": 0.0001,
    "sexual_explicit": 7.6e-05,
}


def message(own, text, *replies, role="prompter", **fields):
    """A message with all fields; those below it get its id as parent."""
    for reply in replies:
        reply["parent_id"] = own
    return {
        "message_id": own,
        "parent_id": None,
        "user_id": "c3fe8c76-fc30-4fa7-b7f8-c492f5967d18",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "text": text,
        "role": role,
        "lang": "en",
        "review_count": 3,
        "review_result": True,
        "deleted": False,
        "rank": None,
        "synthetic": False,
        "model_name": None,
        "detoxify": DETOXIFY,
        "emojis": {"+1": 2, "_skip_reply": 1},
        "events": {"ranking": [{"type": "ranking", "user_id": None}]},
        "labels": copy.deepcopy(LABELS),
        **fields,
        "replies": list(replies),
    }


def answer(own, text, rank, *replies, **fields):
    return message(own, text, *replies, role="assistant", rank=rank, **fields)


def tree(prompt, state="ready_for_export", own=None):
    tree_id = own or prompt["message_id"]
    return {"message_tree_id": tree_id, "tree_state": state, "prompt": prompt, "origin": None}


TREES = [
    # A gap in the ranks, a deleted reply, one without a rank, and a ranked later turn.
    tree(
        message(
            "rain",
            "What is rain?",
            answer(
                "rain-a",
                "Water from clouds.",
                0,
                message(
                    "rain-a-q",
                    "Why?",
                    answer("rain-a-q1", "Weight.", 3),
                    answer("rain-a-q0", "It cools.", 1),
                ),
            ),
            answer(
                "rain-b",
                "Wet.",
                4,
                message("rain-b-q", "How wet?", answer("rain-b-q0", "Very.", 0)),
            ),
            answer("rain-c", "Spam!", 1, message("rain-c-q", "Why?"), deleted=True),
            answer("rain-d", "Unranked.", None),
        )
    ),
    # The same prompt but for case and white space.
    tree(
        message(
            "rain2",
            " what IS\nrain? ",
            answer("rain2-b", "Drops.", 1),
            answer("rain2-a", "Water.", 0),
        )
    ),
    tree(message("grow", "Grow?", answer("grow-a", "A", 0), answer("grow-b", "B", 1)), "growing"),
    tree(
        message(
            "schnee",
            "Was ist Schnee?",
            answer("schnee-a", "Eis.", 0, lang="de"),
            answer("schnee-b", "Kalt.", 1, lang="de"),
            lang="de",
        )
    ),
    # A single reply has no rank; below it are three of which two share one.
    tree(
        message(
            "lone",
            "Name a lake.",
            answer(
                "lone-a",
                "Garda.",
                None,
                message(
                    "lone-q",
                    "Another?",
                    answer("lone-q3", "Como.", 0),
                    answer("lone-q2", "Iseo.", 0),
                    answer("lone-q1", "The Rhine.", 1),
                ),
            ),
        )
    ),
    tree(
        message(
            "gone", "Deleted?", answer("gone-a", "A", 0), answer("gone-b", "B", 1), deleted=True
        )
    ),
    # The best reply is out; the others are ranked still.
    tree(
        message(
            "best",
            "Name a hill.",
            answer("best-a", "Etna, again.", 0, review_result=False),
            answer("best-b", "Etna.", 1),
            answer("best-c", "Hill.", 2),
            answer("best-d", "Hill.", 3),
        )
    ),
    # One reply is left beside a made-up one and one in another language.
    tree(
        message(
            "few",
            "Name a sea.",
            answer("few-a", "The North Sea.", 0),
            answer("few-b", "Sea.", 1, synthetic=True, model_name="oasst-sft-0"),
            answer("few-c", "Das Meer.", 2, lang="de"),
        )
    ),
    # Ranked five messages down; a state is not given; labels are missing.
    tree(
        message(
            "deep",
            "One?",
            answer(
                "deep-1",
                "1.",
                0,
                message(
                    "deep-2",
                    "Two?",
                    answer(
                        "deep-3",
                        "2.",
                        None,
                        message(
                            "deep-4", "Three?", answer("deep-5", "3.", 0), answer("deep-6", "4.", 1)
                        ),
                    ),
                ),
                labels=None,
            ),
        ),
        None,
    ),
    tree(message("blank", " \n", answer("blank-a", "A", 0), answer("blank-b", "B", 1))),
    tree(None, own="null"),
    # A prompter replies to a prompter.
    tree(
        message(
            "turns",
            "Turns?",
            message(
                "turns-q", "Mine?", answer("turns-a", "A", 0), answer("turns-b", "B", 1), rank=0
            ),
        )
    ),
]

# tree -> (response, its id); of the two trees of one prompt, whichever comes first.
IFT = {
    "rain": ("What is rain?", "Water from clouds.", "rain-a"),
    "rain2": (" what IS\nrain? ", "Water.", "rain2-a"),
    "few": ("Name a sea.", "The North Sea.", "few-a"),
    "deep": ("One?", "1.", "deep-1"),
}
# prompt's id -> (tree, turn, prompt, {reply's id: (text, score)}).
EFT = {
    "rain": (
        "rain",
        0,
        "What is rain?",
        {"rain-a": ("Water from clouds.", 1), "rain-b": ("Wet.", 0)},
    ),
    "rain-a-q": (
        "rain",
        1,
        "User: What is rain?\n\nAssistant: Water from clouds.\n\nUser: Why?",
        {"rain-a-q0": ("It cools.", 1), "rain-a-q1": ("Weight.", 0)},
    ),
    "rain2": ("rain2", 0, " what IS\nrain? ", {"rain2-a": ("Water.", 1), "rain2-b": ("Drops.", 0)}),
    "lone-q": (
        "lone",
        1,
        "User: Name a lake.\n\nAssistant: Garda.\n\nUser: Another?",
        {"lone-q1": ("The Rhine.", 0), "lone-q2": ("Iseo.", 1), "lone-q3": ("Como.", 1)},
    ),
    "best": ("best", 0, "Name a hill.", {"best-b": ("Etna.", 1), "best-c": ("Hill.", 0)}),
    "deep-4": (
        "deep",
        2,
        "User: One?\n\nAssistant: 1.\n\nUser: Two?\n\nAssistant: 2.\n\nUser: Three?",
        {"deep-5": ("3.", 1), "deep-6": ("4.", 0)},
    ),
}


def flat_messages(trees):
    """The same as flat messages: labels and emojis as lists, tree id and state in each."""
    found = []
    for each in trees:
        stack = [each["prompt"]] if each["prompt"] else []
        while stack:
            made = dict(stack.pop())
            stack += made.pop("replies")
            made["message_tree_id"], made["tree_state"] = (
                each["message_tree_id"],
                each["tree_state"],
            )
            if made["labels"]:
                made["labels"] = as_lists(made["labels"])
            made["emojis"] = {"name": [*made["emojis"]], "count": [*made["emojis"].values()]}
            del made["events"]
            found.append(made)
    return found


def as_lists(labels):
    return {
        "name": [*labels],
        "value": [label["value"] for label in labels.values()],
        "count": [label["count"] for label in labels.values()],
    }
