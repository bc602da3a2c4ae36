"""Model cards: what they say of a whole run, and of runs that lack parts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from srlm_fast.config import FILES, option_at
from srlm_fast.records import InputError
from srlm_fast.report import write_card, write_cards
from srlm_fast.run import write_pages
from tests.report.folders import make_folder, summary, write_jsonl


def yaml_of(card: str) -> dict[str, Any]:
    """The header as the hub's own library reads it."""
    from huggingface_hub import ModelCard

    return ModelCard(card, ignore_metadata_errors=False).data.to_dict()


def change(path: Path, edit: Any) -> None:
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "my run"
    folder.mkdir()
    make_folder(folder)
    for name in ("m1", "m2", "m3"):
        (folder / name / "model").mkdir(parents=True)
    write_jsonl(folder / "m1" / "sft.jsonl", [{"kind": "ift"}] * 3 + [{"kind": "eft"}] * 2)
    return folder


def card(run: Path, number: int = 3, **more: Any) -> str:
    return write_card(run, number, run / f"m{number}" / "model", **more).read_text()


def test_a_figure_that_the_last_model_lacks_is_kept_of_the_others(run):
    def edit(found):
        for model, value in zip(found["models"], (7.25, 8.5, None), strict=True):
            model["human_text"] = {"perplexity": value, "whole": True}

    change(run / "summary.json", edit)
    made = card(run)
    assert re.search(r"\| perplexity \| 7.25 \| 8.5 \| \S+ \|", made) and "| whole |" not in made


def test_a_card_beside_each_model(run):
    files = write_cards(run, "meta-llama/Llama-3.1-8B")
    assert files == [run / name / "model" / "README.md" for name in ("m1", "m2", "m3")]
    first, _, last = (path.read_text() for path in files)
    assert yaml_of(last) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "base_model": "meta-llama/Llama-3.1-8B",
        "base_model_relation": "finetune",
        "tags": ["self-rewarding", "dpo", "srlm-fast"],
    }
    assert "# my run M3" in last and "is 2 rounds behind M1" in last
    assert "| M1 | 3.36 | 3.27 to 3.45 | 400 |" in first and "| M2 |" not in first
    assert "| M3 | 3.79 | 3.70 to 3.88 | 400 | 28 |" in last
    assert "rows of M1's SFT: 3 IFT, 2 EFT" in last and "M3, prompts: 29 self-made, 1 file" in last
    assert "| M3 | 512 | 2048 | 6144 | 12 | 407 | tie 105 |" in last
    assert "prompts not taken: duplicate 90, similar 12" in last
    assert "beta 0.1" in last and "torch 2.13" in last and "seed 0" in last


def test_a_run_ends_with_cards_and_a_report(run):
    assert write_pages(run, "qwen3-8b") == run / "report.html"
    made = (run / "m2" / "model" / "README.md").read_text()
    assert yaml_of(made)["base_model"] == "Qwen/Qwen3-8B" and (run / "report.html").is_file()


def test_license_of_the_base(run, tmp_path):
    change(run / "config.json", lambda found: found["run"].update(model=str(tmp_path / "base")))
    assert "license" not in yaml_of(card(run))
    assert yaml_of(card(run, hub_id="Qwen/Qwen3-8B"))["license"] == "apache-2.0"
    assert yaml_of(card(run, hub_id="meta-llama/Llama-3.1-8B"))["license"] == "llama3.1"
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: 'mit'\n---\nlicense: no\n")
    assert yaml_of(card(run))["license"] == "mit"


def test_nothing_of_the_machine_is_told(run, tmp_path):
    def edit(found):
        options = {"prompts_file": str(tmp_path / "mine.jsonl"), "out": str(run)}
        found["run"].update(options, inputs={"prompts_file": "ab12" * 16})

    change(run / "config.json", edit)
    made = card(run)
    assert str(tmp_path) not in made
    assert f"`--prompts`: `mine.jsonl`, SHA-256 `{'ab12' * 16}`" in made


def test_every_file_of_the_user_is_told_with_its_rows(run):
    change(run / "config.json", lambda found: found["run"].update({n: f"/x/{n}" for n in FILES}))
    account = {"form": "chats", "rows": 8, "lines": 9, "left_out": 0, "skipped": 3}
    change(run / "summary.json", lambda found: found.update(data={"--eft-eval": account}))
    made = card(run)
    assert [name for name in FILES if f"- `{option_at(name)}`: `{name}`" not in made] == []
    assert "- `--eft-eval`: `eft_eval_file`, chats, 8 rows of 9 lines, skipped 3\n" in made


@pytest.mark.parametrize(("given", "said"), [("no", False), ("subsample", True)])
def test_what_is_off_is_no_step_of_the_recipe(run, given: str, said: bool):
    change(run / "config.json", lambda found: found["run"].update(accumulate=given, mix_real=0.0))
    made = card(run)
    assert (f"| accumulate | {given} |" in made) == said and "| mix real |" not in made


def test_judge_table_warnings_and_perplexity(run):
    def edit(found):
        model, made = found["models"][2], found["rounds"][1]
        model["judge"] |= {
            "intervals": {"pairwise_accuracy": [0.7, 0.8]},
            "n": {"pairwise_accuracy": 50},
            "length_only": {"pairwise_accuracy": 0.6},
            "prompts": 12,
        }
        model["against_previous"] = {
            **{"n": 90, "win_rate": 0.625, "interval": [0.6, 0.65]},
            "length_controlled": {"win_rate": 0.55},
        }
        model["human_text"] = {"perplexity": 12.5, "n": 64, "histogram": [[1, 2]]}
        made["warnings"] = [{"name": "entropy", "text": "fell by 30 %", "figure": 1, "limit": 2}]
        made["mixed"] = {"real": 64, "earlier": 0}

    change(run / "summary.json", edit)
    made = card(run)
    assert "(12 prompts)" in made
    assert "| pairwise accuracy, a tie is half | 76.5% | 70.0% to 80.0% | 50 | 60.0% |" in made
    assert "win rate against M2 62.5% (60.0% to 65.0%; 55.0% at equal length)." in made
    assert re.search(r"\n\| perplexity \|.* \| 12.5 \|\n", made)
    assert "Warning (M3, entropy): fell by 30 %" in made and "(M3" not in card(run, 2)
    assert "M3, mixed in: real 64" in made


def test_a_run_judged_by_m1_without_scores_or_pairs(run):
    def edit(found):
        for model in found["models"]:
            model["eval"] = {"score": None, "n": 0, "interval": None, "judged_by": "M1"}
            model["judge"] = None

    change(run / "summary.json", edit)
    made = card(run)
    assert "The run has no held-out score." in made
    assert "given by a model of the same run" in made and "has not been measured" in made


def test_a_run_that_is_not_finished_or_stopped(run):
    (run / "summary.json").unlink()
    assert "The run has no held-out score." in card(run, 2)
    score = summary()["models"][0]["eval"]
    stages = {
        "m2/measure": {"eval": score, "judge": None, "collapse": {"length_mean": 9.0}},
        "m2/prompts": {"prompts": 7, "rejected": {"empty": 2}},
        "m2/pairs": {"pairs": 5, "dropped": {"tie": 2}},
        "m2/watch": {"warnings": [{"name": "entropy", "text": "fell by 30 %"}]},
    }
    files = {"--ift": {"form": "chats", "rows": 8, "lines": 9, "skipped": 1}}
    change(run / "config.json", lambda found: found["run"].update(ift_file="/x/seeds.jsonl"))
    (run / "state.json").write_text(json.dumps({"stages": stages, "data": files}))
    made = card(run, 2)
    assert "- `--ift`: `seeds.jsonl`, chats, 8 rows of 9 lines, skipped 1\n" in made
    assert "| M2 | 3.36 |" in made and "| M2 | 7 | - | - | - | 5 | tie 2 |" in made
    assert "M2, prompts not taken: empty 2" in made and "(M2, entropy): fell by 30 %" in made
    stopped = {"models": [], "rounds": [], "finished": False, "stopped": {"reason": "no pair"}}
    (run / "summary.json").write_text(json.dumps(stopped))
    assert "**The run stopped by itself**: no pair." in card(run, 2)


def test_best_of_n_and_an_adapter(run):
    def edit(found):
        found["run"] |= {"reward": "best-of-n", "lora": {"rank": 4, "base_dtype": "int8"}}
        found["run"]["sft"] = {"learning_rate": 1e-5, "epochs": 1}

    change(run / "config.json", edit)
    folder = run / "m3" / "model"
    saved = {"base_model_name_or_path": "Qwen/Qwen3-8B", "r": 4, "lora_alpha": 8.0}
    (folder / "adapter_config.json").write_text(json.dumps(saved))
    made = card(run, hub_id="Qwen/Qwen3-8B")
    head = yaml_of(made)
    assert (head["library_name"], head["base_model_relation"]) == ("peft", "adapter")
    assert "| SFT on the best answers | learning rate 1e-05, epochs 1 |" in made
    assert "rank 4, alpha 8, base int8" in made and "| DPO |" not in made
    assert "vllm serve Qwen/Qwen3-8B --enable-lora --max-lora-rank 8" in made  # the least it knows
    (folder / "adapter_config.json").unlink()
    assert "which were int8 while it was trained" in card(run, merged=True)


def test_text_that_models_and_people_wrote_breaks_nothing(run):
    shutil.rmtree(run)
    run.mkdir()
    make_folder(run, hostile=True)
    (run / "m2" / "model").mkdir()
    change(run / "config.json", lambda found: found["run"].update(model="a\udc80|b"))
    assert "| M2 | 3.70 |" in card(run, 2)


def test_a_damaged_file_of_a_run_is_one_line(run):
    (run / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary.json: found no JSON"):
        card(run)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"found no config.json of a run"):
        write_card(tmp_path, 1, tmp_path)
