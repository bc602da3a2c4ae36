"""The page: complete, self-contained, and deaf to whatever a model wrote."""

from __future__ import annotations

import html.parser
import json
import re
import time
from pathlib import Path

import pytest

from srlm_fast.records import InputError
from srlm_fast.report.__main__ import main
from srlm_fast.report.page import render, write_report
from tests.report.folders import HOSTILE, write_jsonl


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


def data_of(page: str) -> dict:
    """What the page's script will read, as a browser delimits it."""
    return json.loads(re.search(r'id="data">(.*?)</script', page, re.S | re.I)[1])


def test_every_part_of_a_finished_run_is_there(make_run):
    page = render(make_run(30))
    text = " ".join("".join(Elements(page).text).split())
    for part in (
        "held-out score, M1 to M3",
        "3.27 to 3.45",
        "Share of answers that earn each point",
        "M3 of the paper",
        "Candidates of the round that made M2",
        "tie 34",
        "duplicate 90",
        "m3/train: margin",
        "sample and judge 12,000 tokens/s",
        "round M3, candidates",
        "torch version",
    ):
        assert part in text, part
    assert page.count("<svg") == 1 + 2 + 4 + 1


def test_nothing_is_loaded_from_anywhere(make_run):
    for tag, attributes in Elements(render(make_run(3))).tags:
        assert tag not in ("link", "iframe", "object", "embed", "img"), tag
        assert not {"src", "href", "srcset"} & attributes.keys(), (tag, attributes)


def test_text_of_the_models_is_never_markup(make_run):
    page = render(make_run(len(HOSTILE), hostile=True))
    tags = [tag for tag, _ in Elements(page).tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    raw = re.search(r'id="data">(.*?)</script', page, re.S | re.I)[1]
    assert not re.search("[<>&\u2028\u2029]", raw)
    shown = {one["t"] for example in data_of(page)["rounds"]["M2"] for one in example["c"]}
    assert shown == {text.encode("utf-8", "replace").decode() for text in HOSTILE[:4]}


def test_hostile_options_and_names_are_escaped(make_run):
    folder = make_run(2)
    run = {"model": "</title><script>1</script>", "reward": '"><b>', "seed": 1}
    (folder / "config.json").write_text(json.dumps({"run": run}))
    summary = json.loads((folder / "summary.json").read_text())
    summary["models"][0]["name"] = "<i>M1</i>"
    summary["rounds"][0]["dropped"] = {"<u>": 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    tags = [tag for tag, _ in Elements(render(folder)).tags]
    assert tags.count("script") == 2
    assert not {"b", "i", "u"} & set(tags)


def test_the_control_the_interval_and_the_built_seed_are_shown(make_run):
    folder = make_run(2)
    assert "taken for the better" not in render(folder) and "to flatten" not in render(folder)
    summary = json.loads((folder / "summary.json").read_text())
    first = summary["models"][0]
    first["judge"] |= {
        "pairwise_interval": [0.71, 0.82],
        "length_only": {"pairwise_accuracy": 0.523, "ties": 0.017},
    }
    first["eft"] = {
        **{"prompts": 36, "answers": 144, "judgements": 288, "unread": 3, "agreeing": 20},
        **{"agreed": 80, "flattened": 7, "kept": 73},
        "dropped": {"unranked": 0, "unread": 1, "disagreeing": 15},
        "before": {"2": 40, "5": 33},
        "after": {"2": 33},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    page = render(folder)
    assert "(71.0 % to 82.0 %)" in page and page.count("taken for the better") == 1
    assert "52.3 %" in page and "1.7 %" in page
    assert "unread 1, disagreeing 15" in page and "2: 40 → 33, 5: 33 → 0" in page


def test_examples_show_scores_and_roles(make_run):
    folder = make_run(12)
    examples = data_of(render(folder))["rounds"]["M3"]
    pairs = {}
    for line in (folder / "m3" / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        pairs[row["prompt"]] = (row["chosen"][1]["content"], row["rejected"][1]["content"])
    assert len(examples) == 12
    assert any(one["r"] for example in examples for one in example["c"])
    for example in examples:
        roles = {one["r"]: one["t"] for one in example["c"] if one["r"]}
        expected = pairs.get(example["p"])
        assert roles == (
            {} if expected is None else dict(zip(("chosen", "rejected"), expected, strict=True))
        )
        assert all(len(one["j"]) == 3 for one in example["c"])  # fmt: skip


@pytest.mark.parametrize(
    "missing", ["summary.json", "metrics.jsonl", "m3/candidates.jsonl", "m2/judgements.jsonl"]
)
def test_an_unfinished_run_has_a_page(make_run, missing: str):
    folder = make_run(5)
    (folder / missing).unlink()
    assert "</html>" in render(folder)


def test_a_new_run_has_a_page(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"run": {"model": "tiny"}}')
    assert "no model has been measured yet" in render(tmp_path)


def test_a_torn_last_line_is_left_out(make_run):
    folder = make_run(5)
    with open(folder / "m2" / "candidates.jsonl", "a") as file:
        file.write('{"prompt_id": "p0", "ind')
    assert len(data_of(render(folder))["rounds"]["M2"]) == 5


def test_large_runs_are_thinned_and_say_so(make_run, tmp_path: Path):
    folder = make_run(2500)
    start = time.process_time()
    path = write_report(folder)
    assert time.process_time() - start < 5
    assert path.stat().st_size < 15e6
    data = data_of(path.read_text(encoding="utf-8"))
    assert data["counts"]["M2"] == 2500
    assert 200 <= len(data["rounds"]["M2"]) <= 300


def test_long_texts_are_cut(make_run):
    folder = make_run(1)
    rows = [
        json.loads(line) for line in (folder / "m2" / "candidates.jsonl").read_text().splitlines()
    ]
    write_jsonl(folder / "m2" / "candidates.jsonl", [row | {"text": "x" * 10**6} for row in rows])
    assert len(render(folder)) < 200_000


def test_the_command_remakes_the_page_and_names_what_is_no_run(make_run, tmp_path, capsys):
    folder = make_run(2)
    assert main([str(folder)]) == 0
    assert (folder / "report.html").is_file()
    assert main([str(tmp_path / "none")]) == 2
    assert "config.json" in capsys.readouterr().err
    with pytest.raises(InputError):
        render(tmp_path / "none")


def test_scores_below_zero_have_bins_of_their_own():
    from srlm_fast.report.gather import bins

    found = bins([-6.5, -0.5, 0.5, 7.0])
    assert (found[0][0], found[-1][0]) == (-10.0, 9.0)
    assert [(edge, count) for edge, count in found if count] == [(-7, 1), (-1, 1), (0, 1), (7, 1)]
    assert bins([0.0, 5.0])[0] == (0.0, 1)
    assert bins([0.0, 5.0])[-1] == (4.75, 1)
