"""The page: complete, self-contained, and deaf to whatever a model wrote."""

from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from srlm_fast.eval import alarms
from srlm_fast.records import InputError
from srlm_fast.report import gather, panels
from srlm_fast.report.page import render
from tests.report.folders import HOSTILE, write_jsonl
from tests.report.unpacked import browsed, data_of, part_of


class Elements(html.parser.HTMLParser):
    """Collects the elements and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def text_of(page: str) -> str:
    return " ".join("".join(Elements(page).text).split())


def change_summary(folder: Path, change: Any) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    change(summary)
    path.write_text(json.dumps(summary))


def test_every_part_of_a_finished_run_is_there(make_run):
    page = render(make_run(30))
    text = text_of(page)
    for part in (
        "held-out score, M1 to M3",
        "3.27 to 3.45",
        "Share of answers that earn each point",
        "the paper's M3",
        "the paper's SFT baseline",
        "Round that made M2: 1",
        "equal scores 34",
        "duplicate 90",
        "Learnt beside the pairs of M2: real 40, earlier 478.",
        "DPO: reward margin",
        "DPO: log-ratios to the reference",
        "1 warning of collapse M2: entropy fall: 0.51, limit 0.808. output entropy fell by 50 %",
        "self-BLEU",
        "share of repeated openings",
        "Perplexity of held-out human text under each model",
        "log-ratios at the end",
        "judge's mean score of own answers",
        "torch version",
    ):
        assert part in text, part
    # The figure of a judge with its interval and the pairs it is of.
    assert "76.5 % 71.0 to 82.0 n 563" in re.sub(r"<[^>]+>", " ", page).replace("  ", " ")


def test_warnings_stand_at_their_figures(make_run):
    page = render(make_run(3))
    assert re.findall(r'<div class="card warned"><div class="head"><h3>([^<]+)', page) == [
        "output entropy, nats/token"
    ]


def warnings_of_the_watch() -> set[str]:
    """The functions that give an alarm have its name."""
    found = inspect.getmembers(inspect.getmodule(alarms), inspect.isfunction)
    giving = {k for k, f in found if f.__annotations__.get("return") == "Alarm | None"}
    return {name for name in giving if not name.startswith("_")}


def test_every_warning_of_the_watch_has_its_chart(make_run):
    assert set(panels.WARNED_AT) == warnings_of_the_watch()
    folder = make_run(3)
    for name, title in panels.WARNED_AT.items():
        row = {"name": name, "figure": 1.0, "limit": 0.5, "text": "too much"}
        change_summary(folder, lambda s, row=row: s["rounds"][0].update(warnings=[row]))
        found = re.findall(
            r'<div class="card warned"><div class="head"><h3>([^<]+)', render(folder)
        )
        assert [html.unescape(each) for each in found] == [title], name


def test_a_preference_is_drawn_against_even_and_warned_of_there(make_run):
    """A steady 0.6 is praise in each round."""
    folder = make_run(3, warned=False)
    warning = {"name": "self_praise", "figure": 1.0, "limit": 0.5, "text": "too much"}
    kept = {"kind": "preference", "score": 0.6}

    def change(summary):
        summary["rounds"][-1].update(warnings=[warning])
        for model in summary["models"]:
            model["own_score"] = kept if model["name"] != "M1" else None

    change_summary(folder, change)
    run = gather.read_run(folder)
    (panel,) = [panel for panel in panels.collapse_panels(run) if panel.warned]
    assert (panel.title, panel.hint) == (
        "preference over the model before",
        "above even alone, it praises itself",
    )
    assert [name for name, _ in panel.legend] == ["P(its own is better)", "even"]
    names = panels.model_names([run])
    _, (own, even) = panels.own_score(run, names, [])
    assert [(p.place, p.value) for p in own.points] == [(1, 0.6), (2, 0.6)]
    assert [(p.place, p.value) for p in even.points] == [(1, 0.5), (2, 0.5)]


def test_no_warning_is_said_plainly_and_an_unwatched_run_is_not_called_healthy(make_run):
    folder = make_run(3, warned=False)
    assert "No warning." in text_of(render(folder)) and 'class="card warned"' not in render(folder)
    change_summary(folder, lambda s: [made.pop("warnings") for made in s["rounds"]])
    assert "No collapse watch was kept" in text_of(render(folder))
    assert "No warning." not in text_of(render(folder))


def test_time_of_every_model_is_shown_with_its_rates(make_run):
    run = gather.read_run(make_run(3))
    spent = {(phase.model, phase.name): phase.seconds for phase in run.phases}
    assert spent["M1", "train"] == 9.5 and spent["M1", "measure"] == 4.0
    assert spent["M3", "judge"] == 17.4 and spent["M3", "measure"] == 4.0
    rates = {(phase.model, phase.name): phase.tokens_per_second for phase in run.phases}
    assert rates["M2", "sample"] == rates["M2", "judge"] == 12000
    assert rates["M2", "train"] == pytest.approx(5000)


def test_time_of_an_unfinished_run_is_that_of_its_finished_stages(make_run):
    folder = make_run(3)
    (folder / "summary.json").unlink()
    phases = gather.read_run(folder).phases
    assert {(phase.model, phase.name) for phase in phases if phase.model != "M3"} == {
        *(("M1", "train"), ("M1", "measure")),
        *(("M2", name) for name in ("prompts", "answers", "pairs", "train")),
    }
    assert {phase.seconds for phase in phases} == {3.25}


def test_memory_has_a_column_for_each_phase(make_run):
    page = render(make_run(3))
    columns = re.findall(r"<title>(m\d/\w+), sampling: peak 2\.25 GiB; ([^<]+)</title>", page)
    assert [name for name, _ in columns[:3]] == ["m1/train", "m1/measure", "m2/prompts"]
    assert columns[0][1] == (
        "weights 0.25 GiB, keys and values 1.00 GiB, optimizer 0.50 GiB, other 0.25 GiB"
    )
    assert len(columns) == 10


def test_lengths_are_quantiles_of_the_answers(make_run):
    run = gather.read_run(make_run(4))
    first = run.answer_lengths[0]  # 1 to 21 characters
    assert (first.name, first.n, first.mean) == ("M1", 21, 11)
    assert first.quantiles == (2, 6, 11, 16, 20)


def test_nothing_is_loaded_from_anywhere(make_run):
    page = render(make_run(3))
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base"), tag
        assert not {"src", "srcset", "style"} & attributes.keys(), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#"), (tag, attributes)
    assert "url(" not in page and "@import" not in page


def test_the_policy_lets_this_script_run_and_no_other(make_run):
    page = render(make_run(3))
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for t, a in Elements(page).tags if a.get("http-equiv"))
    assert f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none';")


def test_text_of_the_models_is_never_markup(make_run):
    page = render(make_run(len(HOSTILE), hostile=True))
    tags = [tag for tag, _ in Elements(page).tags]
    assert tags.count("script") == 4  # data, two rounds of rows, the script
    assert "img" not in tags
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", part_of(page, "rows-0"))
    shown = {answer["text"] for row in browsed(page)["M2"] for answer in row["answers"]}
    assert shown == {text.encode("utf-8", "replace").decode() for text in HOSTILE[:4]}


def test_hostile_options_and_names_are_escaped(make_run):
    folder = make_run(2)
    run = {"model": "</title><script>1</script>", "reward": '"><b>', "seed": 1}
    (folder / "config.json").write_text(json.dumps({"run": run}))

    def change(summary: Any) -> None:
        summary["models"][0]["name"] = "<i>M1</i>"
        summary["rounds"][0]["name"] = "</script><u>"
        summary["rounds"][0]["dropped"] = {"<u>": 2}
        summary["rounds"][1]["warnings"] = [{"name": "<u>", "figure": "<u>", "text": "<u>"}]
        summary["models"][1]["collapse"] = {"<u>": 1.0}

    change_summary(folder, change)
    write_jsonl(
        folder / "metrics.jsonl", [{"stage": "<u>/train", "step": s, "loss": 1} for s in (0, 1)]
    )
    page = render(folder)
    tags = [tag for tag, _ in Elements(page).tags]
    assert (
        tags.count("script") == 4
    )  # M2, whose rows are there without a row of the summary, and M3
    assert not {"b", "i", "u"} & set(tags)
    assert not re.search("[<>&\u2028\u2029]", part_of(page, "data"))


def test_a_hostile_folder_name_is_escaped(tmp_path: Path):
    folder = tmp_path / "<u>&\"'run"
    folder.mkdir()
    (folder / "config.json").write_text('{"run": {"model": "tiny"}}')
    assert "u" not in [tag for tag, _ in Elements(render(folder)).tags]


def test_the_built_seed_is_shown(make_run):
    folder = make_run(2)
    assert "to flatten" not in render(folder)
    eft = {
        **{"prompts": 36, "answers": 144, "judgements": 288, "unread": 3, "agreeing": 20},
        **{"agreed": 80, "flattened": 7, "kept": 73},
        "dropped": {"unranked": 0, "unread": 1, "disagreeing": 15},
        "before": {"2": 40, "5": 33},
        "after": {"2": 33},
    }
    change_summary(folder, lambda s: s["models"][0].update(eft=eft))
    text = text_of(render(folder))
    assert "unread 1, disagreeing 15" in text and "2: 40 → 33, 5: 33 → 0" in text


@pytest.mark.parametrize(
    "missing", ["summary.json", "metrics.jsonl", "m3/candidates.jsonl", "m2/judgements.jsonl"]
)
def test_an_unfinished_run_has_a_page(make_run, missing: str):
    folder = make_run(5)
    (folder / missing).unlink()
    page = render(folder)
    assert "</html>" in page
    assert ("This run is not finished" in page) == (missing == "summary.json")


def test_an_unfinished_run_shows_the_rows_that_are_there(make_run):
    folder = make_run(5)
    (folder / "summary.json").unlink()
    for name in ("pairs", "dropped"):
        (folder / "m3" / f"{name}.jsonl").unlink()
    model = {"eval": {"score": 3.5, "n": 9, "interval": [3.2, 3.8]}, "collapse": {"entropy": 0.5}}
    answered = {"candidates": 20, "tokens": {"answers": 30, "judgements": 70}, "seconds_here": 5.0}
    stages = {"m1/train": {}, "m1/measure": model, "m2/prompts": {"prompts": 7}}
    (folder / "state.json").write_text(
        json.dumps({"stages": stages | {"m2/answers": answered}, "data": {"--ift": {"rows": 8}}})
    )
    page = render(folder)
    found, text = browsed(page), text_of(page)
    assert {row["outcome"] for row in found["M3"]} == {"not_decided"}
    assert len(found["M2"]) == 5
    # What the finished stages left stands where the summary's figures would.
    assert "held-out score of M13.503.20 to 3.80" in text
    assert "--ift" in text and "No warning." not in text
    row = re.search(r"<tr><td>M2</td>.*", page[page.index('id="pairs"') :])
    assert re.findall(r">([\d–]+)<", row[0])[:4] == ["7", "20", "–", "–"]
    rates = {(p.model, p.name): p.tokens_per_second for p in gather.read_run(folder).phases}
    assert rates["M2", "answers"] == 20


def test_a_stopped_run_says_why(make_run):
    folder = make_run(2)
    reason = "M2: the round gave no pair"
    change_summary(folder, lambda s: s.update(finished=False, stopped={"reason": reason}))
    assert f"The run stopped by itself: {reason}" in text_of(render(folder))


def test_a_new_run_has_a_page(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"run": {"model": "tiny"}}')
    assert "no model has been measured yet" in render(tmp_path)


def test_a_torn_last_line_is_left_out(make_run):
    folder = make_run(5)
    with open(folder / "m2" / "candidates.jsonl", "a") as file:
        file.write('{"prompt_id": "p0", "ind')
    assert len(browsed(render(folder))["M2"]) == 5


@pytest.mark.parametrize(
    ("file", "content", "wanted"),
    [
        ("summary.json", "{", "summary.json: found no JSON"),
        ("summary.json", "[]", "summary.json: found no JSON object"),
        ("summary.json", '{"models": 3}', "summary.json: found no list of named objects"),
        ("summary.json", '{"rounds": [{}]}', "under 'rounds'"),
        (
            "m2/candidates.jsonl",
            '{"prompt_id": "p0"}\n',
            "candidates.jsonl row 1: found no 'index'",
        ),
        ("m2/pairs.jsonl", "nonsense\n", "pairs.jsonl line 1: found no JSON"),
    ],
)
def test_a_broken_file_is_named(make_run, file: str, content: str, wanted: str):
    folder = make_run(2)
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=re.escape(wanted)):
        render(folder)


def test_data_of_the_page_counts_its_rounds(make_run):
    page = render(make_run(6))
    assert data_of(page)["rounds"] == [
        {"name": "M2", "total": 6, "kept": 6},
        {"name": "M3", "total": 6, "kept": 6},
    ]


def test_scores_below_zero_have_bins_of_their_own():
    found = gather.bins([-6.5, -0.5, 0.5, 7.0])
    assert (found[0][0], found[-1][0]) == (-10.0, 9.0)
    assert [(edge, count) for edge, count in found if count] == [(-7, 1), (-1, 1), (0, 1), (7, 1)]
    assert gather.bins([0.0, 5.0])[0] == (0.0, 1)
    assert gather.bins([0.0, 5.0])[-1] == (4.75, 1)
