"""Seeds from Open Assistant: hand-worked rows, the forms, the choice, mistakes."""

from __future__ import annotations

import copy
import gzip
import json
import random
from hashlib import blake2b

import pyarrow
import pyarrow.parquet
import pytest

from benchmarks.bench_oasst import Corpus, flat
from srlm_fast.data.fields import Skipped
from srlm_fast.data.oasst import OasstConfig, make_seeds
from srlm_fast.records import InputError, conversation_text
from tests.data.oasst_trees import EFT, IFT, TREES, answer, flat_messages, message, tree

ALL = OasstConfig(ift=0, eft_train=100, eft_eval=0)
FORMS = ("trees.jsonl", "trees.jsonl.gz", "trees.json", "flat.jsonl", "flat.json", "flat.parquet")


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1), "utf-8")
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def place(seed, name):
    return blake2b(f"{seed}/{name}".encode(), digest_size=12).hexdigest()


def rows_of(seeds):
    return seeds.ift, seeds.eft_train, seeds.eft_eval


@pytest.fixture(scope="module")
def corpus():
    return list(Corpus(7).trees(120, ready_share=0.9))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_answers_to_imitate(tmp_path, form, seed):
    """First turns with their reply of rank 0, in the order drawn, a prompt once."""
    trees = TREES if form.startswith("trees") else flat_messages(TREES)
    seeds = make_seeds([write(tmp_path, trees, form)], OasstConfig(seed, ift=9, eft_train=0))
    out = max("rain", "rain2", key=lambda name: place(seed, name))
    wanted = sorted(IFT.keys() - {out}, key=lambda name: place(seed, name))
    assert [row["message_tree_id"] for row in seeds.ift] == wanted
    for row in seeds.ift:
        prompt, response, own = IFT[row["message_tree_id"]]
        assert (row["prompt"], row["response"], row["response_id"]) == (prompt, response, own)
        assert row["prompt_id"] == row["message_tree_id"] and row["source"] == "Open Assistant"
    labels = {row["message_tree_id"]: row["labels"] for row in seeds.ift}
    assert labels["few"]["quality"] == 0.75 and "humor" not in labels["few"]
    assert labels["deep"] == {}


@pytest.mark.parametrize("form", FORMS)
def test_answers_in_peoples_order(tmp_path, form):
    """Without IFT: first turns from the end of the order, then later turns."""
    trees = TREES if form.startswith("trees") else flat_messages(TREES)
    seeds = make_seeds([write(tmp_path, trees, form)], ALL)
    out = min("rain", "rain2", key=lambda name: place(0, name))
    wanted = sorted(EFT.keys() - {out}, key=lambda own: place(0, EFT[own][0]), reverse=True)
    wanted.sort(key=lambda own: EFT[own][1] > 0)
    assert [row["prompt_id"] for row in seeds.eft_train] == wanted and not seeds.eft_eval
    for row in seeds.eft_train:
        scored = zip(row["responses"], row["scores"], strict=True)
        replies = dict(zip(row["response_ids"], scored, strict=True))
        found = (row["message_tree_id"], row["turn"], row["prompt"], replies)
        assert found == EFT[row["prompt_id"]]
        turns = [*row.get("turns", ()), {"role": "user", "content": row.get("text", row["prompt"])}]
        assert len(turns) == 2 * row["turn"] + 1 and conversation_text(turns) == row["prompt"]


ACCOUNT = {
    "messages": {"read": 53, "read twice": 0, "apart from their tree": 0},
    "trees": {
        "read": 12,
        "not ready for export": 1,
        "no first message": 0,
        "deleted": 1,
        "review failed": 0,
        "synthetic": 0,
        "other language": 1,
        "empty text": 2,
        "roles out of turn": 0,
        "usable": 7,
    },
    "ift": {
        "no ranked reply": 1,
        "reply of rank 0 left out": 2,
        "candidates": 4,
        "duplicates of a prompt": 1,
        "not needed": 0,
        "taken": 3,
    },
    "eft": {
        "prompts": 18,
        "deleted": 1,
        "review failed": 0,
        "synthetic": 0,
        "other language": 1,
        "empty text": 2,
        "roles out of turn": 1,
        "behind one left out": 1,
        "under two ranked replies": 6,
        "candidates": 6,
        "first turns of IFT's trees": 1,
        "duplicates of a prompt": 1,
        "not needed": 0,
        "taken for training": 3,
        "later turns in training": 2,
        "taken for evaluation": 1,
        "later turns in evaluation": 1,
    },
}


@pytest.mark.parametrize("form", ["trees.jsonl", "flat.jsonl"])
def test_every_filter_is_accounted_for(tmp_path, form):
    trees = TREES
    if form.startswith("flat"):  # a tree without a prompt has no flat messages
        trees = flat_messages([t for t in TREES if t["prompt"]])
        trees += flat_messages([tree(message("null", ""))])
    account = make_seeds([write(tmp_path, trees, form)], OasstConfig()).account
    for section, wanted in ACCOUNT.items():
        assert account[section] | wanted == account[section], section
    trees = account["trees"]
    assert trees["read"] == sum(trees.values()) - trees["read"]
    ift = account["ift"]
    assert (
        trees["usable"]
        == ift["candidates"] + ift["no ranked reply"] + ift["reply of rank 0 left out"]
    )
    replies = account["replies"]
    assert replies["read"] == sum(replies.values()) - replies["read"]


def test_the_order_of_lines_and_files_and_the_form_do_not_matter(tmp_path, corpus):
    config = OasstConfig(3, ift=20, eft_train=30, eft_eval=10)
    wanted = make_seeds([write(tmp_path, corpus)], config)
    assert list(map(len, rows_of(wanted))) == [20, 30, 10]
    messages = [m for each in corpus for m in flat(each)]
    random.Random(0).shuffle(messages)
    paths = [
        write(tmp_path, messages[:500], "b.parquet"),
        write(tmp_path, messages[500:], "a.jsonl.gz"),
    ]
    shuffled = make_seeds(paths, config)
    assert rows_of(shuffled) == rows_of(wanted) and shuffled.account == wanted.account
    mixed = [write(tmp_path, [*corpus[::-2], *messages], "c.jsonl"), write(tmp_path, corpus[1::2])]
    twice = make_seeds(mixed, config)
    assert rows_of(twice) == rows_of(wanted)
    assert twice.account["messages"]["read twice"] > 0
    assert rows_of(make_seeds(mixed, OasstConfig(4, "en", 20, 30, 10))) != rows_of(wanted)
    spanish = make_seeds(mixed, OasstConfig(3, "es", 5, 5, 5))
    ids = {each["message_tree_id"] for each in corpus if each["prompt"]["lang"] == "es"}
    assert {row["message_tree_id"] for rows in rows_of(spanish) for row in rows} <= ids


@pytest.mark.parametrize("ift", [0, 5, 20, 1000])
def test_the_parts_have_nothing_in_common(tmp_path, corpus, ift):
    seeds = make_seeds([write(tmp_path, corpus)], OasstConfig(0, "en", ift, 60, 20))
    trees = [{row["message_tree_id"] for row in rows} for rows in rows_of(seeds)]
    assert not trees[1] & trees[2]
    prompts = [row["prompt"] for rows in rows_of(seeds) for row in rows]
    assert len(prompts) == len(set(prompts))
    for rows in (seeds.eft_train, seeds.eft_eval):
        classes = [(row["turn"] > 0) + (row["message_tree_id"] in trees[0]) for row in rows]
        assert classes == sorted(classes)
        firsts = {row["message_tree_id"] for row in rows if row["turn"] == 0}
        assert not firsts & trees[0]
    places = [place(0, row["message_tree_id"]) for row in seeds.ift]
    assert places == sorted(places) and len(places) == min(ift, seeds.account["ift"]["candidates"])
    eft = seeds.account["eft"]
    used = ("first turns of IFT's trees", "duplicates of a prompt", "not needed")
    sides = {"training": seeds.eft_train, "evaluation": seeds.eft_eval}
    for side, rows in sides.items():
        shared = sum(row["message_tree_id"] in trees[0] for row in rows)
        assert eft[f"of IFT's trees in {side}"] == shared and (shared > 0) == (ift >= 20)
    taken = eft["taken for training"] + eft["taken for evaluation"]
    assert eft["candidates"] == sum(eft[name] for name in used) + taken


def test_training_and_evaluation_fill_up_side_by_side(tmp_path, corpus):
    """A quarter of the first turns are for evaluation, as of all rows."""
    seeds = make_seeds([write(tmp_path, corpus)], OasstConfig(0, "en", 0, 30, 10))
    order = sorted(
        (row for rows in rows_of(seeds) for row in rows if row["turn"] == 0),
        key=lambda row: place(0, row["message_tree_id"]),
        reverse=True,
    )
    sides = [row in seeds.eft_eval for row in order]
    assert len(sides) == 40 and all(sum(sides[:n]) in (n // 4, -(-n // 4)) for n in range(40))


def test_deep_trees_do_not_end_the_stack(tmp_path):
    rows = [message("0", "q", answer("x", "x", 1))]
    for i in range(1, 1500):
        make = answer if i % 2 else message
        rows.append(make(str(i), f"t{i}", *([0] if i % 2 else [])))
        rows[-1]["parent_id"] = str(i - 1)
    rows = flat_messages([tree(row, own="0") for row in rows])
    seeds = make_seeds([write(tmp_path, rows)], ALL)
    assert [row["response_ids"] for row in seeds.eft_train] == [["1", "x"]]


def test_messages_whose_tree_is_not_there(tmp_path):
    rows = [m for m in flat_messages(TREES[:1]) if m["message_id"] not in ("rain", "rain-b")]
    seeds = make_seeds([write(tmp_path, rows)], OasstConfig())
    assert not any(rows_of(seeds))
    assert seeds.account["trees"]["no first message"] == 1
    assert seeds.account["messages"]["apart from their tree"] == len(rows)
    rows = [m for m in flat_messages(TREES[:1]) if m["message_id"] != "rain-a"]
    account = make_seeds([write(tmp_path, rows)], OasstConfig()).account
    assert account["messages"]["apart from their tree"] == 3
    assert account["ift"]["reply of rank 0 left out"] == 1


def threads(messages):
    """A line for each message that none answers: it, and those before it."""
    by_id = {each["message_id"]: each for each in messages}
    for last in by_id.keys() - {each["parent_id"] for each in messages}:
        thread = [by_id[last]]
        while thread[0]["parent_id"]:
            thread.insert(0, by_id[thread[0]["parent_id"]])
        yield {
            "thread_id": last,
            "thread": [thread[0], *({**m, "parent_id": None} for m in thread[1:])],
        }


@pytest.mark.parametrize("form", ["nested", "flat", "threads", "mixed"])
def test_messages_that_do_not_name_their_tree(tmp_path, corpus, form):
    trees = [each for each in corpus if each["tree_state"] == "ready_for_export"][:40]
    config = OasstConfig(3, ift=10, eft_train=20, eft_eval=10)
    wanted = make_seeds([write(tmp_path, trees)], config)
    messages = [m | {"message_tree_id": None} for each in trees for m in flat(each)]
    random.Random(0).shuffle(messages)
    nested = [each["prompt"] for each in trees]
    rows = {
        "nested": nested,
        "flat": messages,
        "threads": [*threads(messages)],
        "mixed": [*trees[:9], *messages, *nested[5:20]],
    }
    lost = message("lost", "Behind nothing.") | {"parent_id": "none"}
    found = make_seeds([write(tmp_path, [lost, *rows[form]])], config)
    assert rows_of(found) == rows_of(wanted) and all(rows_of(wanted))
    assert found.account["messages"]["apart from their tree"] == 1
    assert found.account["trees"] == wanted.account["trees"]


def test_ranks_as_tables_with_gaps_have_them(tmp_path):
    rows = flat_messages(TREES)
    for row in rows:
        row["rank"] = float("nan") if row["rank"] is None else float(row["rank"])
    seeds = make_seeds([write(tmp_path, rows)], OasstConfig())
    assert rows_of(seeds) == rows_of(make_seeds([write(tmp_path, TREES)], OasstConfig()))


def changed(path, value):
    """The first tree with something else at a place."""
    made = copy.deepcopy(TREES[0])
    *way, last = path
    inner = made
    for name in way:
        inner = inner[name]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return made


REPLY = ("prompt", "replies", 1)
FLAT = flat_messages(TREES[:1])[1]
MISTAKES = [
    (changed(["message_tree_id"], None), ["'message_tree_id' is null", "a string"]),
    (changed(["message_tree_id"], " "), ["'message_tree_id' is blank"]),
    (changed(["tree_state"], 3), ["'tree_state' is the number 3"]),
    (changed(["prompt"], "text"), ["'prompt' is a string", "a message"]),
    (changed(["prompt", "text"], None), ["'prompt.text' is null"]),
    (changed(["prompt", "text"], KeyError), ["'prompt.text' is missing"]),
    (changed(["prompt", "text"], "\ud83d"), ["'prompt.text' has half of a surrogate"]),
    (changed(["prompt", "role"], "user"), ["'prompt.role' is 'user'", "'prompter' or 'assistant'"]),
    (changed(["prompt", "message_id"], KeyError), ["'prompt.message_id' is missing"]),
    (changed(["prompt", "replies"], {}), ["'prompt.replies' is an object", "a list of messages"]),
    (changed(["prompt", "replies", 1], None), ["'prompt.replies[1]' is null"]),
    (changed([*REPLY, "rank"], -1), ["'prompt.replies[1].rank' is the number -1"]),
    (changed([*REPLY, "rank"], 0.5), ["rank' is the number 0.5"]),
    (changed([*REPLY, "rank"], "0"), ["rank' is a string"]),
    (changed([*REPLY, "rank"], True), ["rank' is a boolean"]),
    (changed([*REPLY, "rank"], 1e400), ["rank' is the number inf"]),
    (changed([*REPLY, "deleted"], 0), ["deleted' is the number 0", "true, false or null"]),
    (changed([*REPLY, "lang"], ["en"]), ["lang' is a list"]),
    (changed([*REPLY, "labels"], "spam"), ["labels' has another form"]),
    (changed([*REPLY, "labels"], {"spam": None}), ["labels' has another form"]),
    (changed([*REPLY, "labels"], {"name": ["a"], "value": []}), ["labels' has another form"]),
    (changed([*REPLY, "labels"], {"a": {"value": 10**400}}), ["labels' has another form"]),
    (changed([*REPLY, "labels"], {"a": {"value": 1e400}}), ["labels' has another form"]),
    ({**FLAT, "parent_id": "\ud83d"}, ["'parent_id' has half of a surrogate"]),
    ({**FLAT, "parent_id": 3}, ["'parent_id' is the number 3", "a string or null"]),
    ({**FLAT, "message_id": "\ud83d"}, ["'message_id' has half of a surrogate"]),
    ({**FLAT, "message_tree_id": "\ud83d"}, ["'message_tree_id' has half of a surrogate"]),
    ({"prompt": "a"}, ["found prompts or texts without message ids", "wanted {", "--prompts"]),
    ("What is rain?", ["found prompts or texts without message ids"]),
    ({"thread_id": "x", "thread": []}, ["'thread' is an empty list"]),
    ({"thread_id": "x", "thread": [FLAT, {}]}, ["'thread[1].message_id' is missing"]),
    ({}, ["found no field, wanted {"]),
    (TREES[0]["prompt"] | {"replies": [3]}, ["'replies[0]' is the number 3", "a message"]),
]


@pytest.mark.parametrize(("row", "parts"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line_that_says_where(tmp_path, row, parts):
    path = write(tmp_path, [TREES[1], row])
    with pytest.raises(InputError) as caught:
        make_seeds([path], OasstConfig())
    said = str(caught.value)
    assert said.startswith(f"{path} line 2: ") and "wanted" in said and "\n" not in said
    assert all(part in said for part in parts), said
    skipped = Skipped()
    seeds = make_seeds([path], OasstConfig(), skipped)
    assert [row["message_tree_id"] for row in seeds.ift] == ["rain2"] and skipped.count == 1


@pytest.mark.parametrize("name", ["replies", "labels", "emojis", "events", "detoxify", "rank"])
def test_what_the_exports_leave_null(tmp_path, name):
    made = changed([*REPLY, name], None)
    for other in (made, changed([*REPLY, name], KeyError)):
        seeds = make_seeds([write(tmp_path, [other])], OasstConfig())
        assert [row["response_id"] for row in seeds.ift] == ["rain-a"]


def test_nothing_of_a_bad_line_is_kept(tmp_path):
    """Its good messages come before the bad one."""
    path, skipped = write(tmp_path, [MISTAKES[10][0], TREES[7]]), Skipped()
    seeds = make_seeds([path], OasstConfig(), skipped)
    assert seeds.account["messages"]["read"] == 4 and skipped.count == 1


def test_progress_is_told_in_bytes(tmp_path, corpus):
    paths = [write(tmp_path, corpus, name) for name in ("a.jsonl", "b.jsonl.gz")]
    told = []
    make_seeds(paths, OasstConfig(), told=lambda index, done: told.append((index, done)))
    assert told == sorted(told) and {index for index, _ in told} == {0, 1}
    assert all(0 < done <= paths[index].stat().st_size for index, done in told)
