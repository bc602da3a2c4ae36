"""The tree: recipes, options, ranges, JSON, and in what two runs differ."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from srlm_fast import config as configs
from srlm_fast.config import Config, differences, from_json, from_options
from srlm_fast.defaults import DEFAULTS, help_of
from srlm_fast.options import LOSSES, OPTIMIZERS, OPTIONS, SCHEDULES
from srlm_fast.records import InputError
from srlm_fast.run import read_options
from srlm_fast.tiny.settings import SETTINGS
from srlm_fast.train import config as train_config


def tree(*argv: str) -> Config:
    return from_options(read_options(argv))


def test_every_option_sets_a_field_of_the_tree():
    for option in OPTIONS:
        assert configs.get(Config(), option.path) is not None or option.path in (
            "device",
            "dtype",
            "kv_gb",
            "reward_model",
            "lora.alpha",
            "lora.base_dtype",
            *configs.FILES,
        ), option.name


def test_every_default_is_in_its_own_range():
    for made in (Config(), configs.tiny(), configs.paper(Config()), configs.paper(configs.tiny())):
        configs.check(made)


def test_the_default_is_the_tiny_model_with_its_own_numbers():
    made = tree()
    assert made.model == "tiny"
    assert made.iterations == 2
    assert made.num_prompts == SETTINGS.num_prompts
    assert made.dpo.learning_rate == SETTINGS.dpo_learning_rate
    assert made.judge.sampling.n == SETTINGS.num_judgements


def test_the_paper_has_its_numbers_for_any_model():
    made = tree("--recipe", "paper", "--model", "llama-2-70b")
    assert made.model == "llama-2-70b"
    assert (made.num_ift, made.num_eft) == (3200, 1630)
    assert (made.sft.learning_rate, made.sft.final_fraction, made.sft.batch_rows) == (
        5.5e-6,
        0.2,
        16,
    )
    assert (made.dpo.learning_rate, made.dpo.final_fraction, made.dpo.beta) == (1e-6, 0.1, 0.1)
    assert (made.candidates.n, made.candidates.temperature, made.candidates.top_p) == (4, 0.7, 0.9)
    assert made.judge.sampling.n == 3
    assert (made.prompt_sampling.temperature, made.prompt_sampling.top_p) == (0.6, 0.9)
    assert (made.prompts.seed_shots, made.prompts.made_shots, made.prompts.similarity) == (
        6,
        2,
        0.7,
    )


def test_options_override_the_recipe():
    made = tree("--candidates", "8", "--beta", "0.2", "--judge", "expected", "--dtype", "bf16")
    assert (made.candidates.n, made.dpo.beta, made.judge.mode) == (8, 0.2, "expected")
    assert made.dtype == "bfloat16"
    assert made.candidates.top_p == SETTINGS.top_p


def test_losses_are_the_kernels_and_gamma_is_simpos():
    assert LOSSES == importlib.import_module("srlm_fast.kernels.dpo_loss").LOSSES
    made = tree("--gamma", "0.5", "--loss", "simpo", "--nll-weight", "0.1")
    assert (made.dpo.loss, made.dpo.gamma, made.dpo.nll_weight) == ("simpo", 0.5, 0.1)
    with pytest.raises(InputError, match="--gamma: 0.5, wanted 0: sigmoid has no target margin"):
        tree("--gamma", "0.5")


def test_simpo_has_sizes_of_its_own():
    made = tree("--loss", "simpo", "--model", "llama-3-8b")
    assert (made.dpo.beta, made.dpo.gamma) == (2.0, 1.0)
    made = tree("--gamma", "0", "--loss", "simpo", "--beta", "2.5")
    assert (made.dpo.beta, made.dpo.gamma) == (2.5, 0.0)
    for option, value in (("--beta", 2), ("--gamma", 1)):
        (row,) = [each for each in OPTIONS if each.name == option]
        assert f"there {value} where not given" in row.help


def test_help_shows_the_defaults_of_the_tree():
    for option in OPTIONS:
        default, tiny = (said(made, option.path) for made in (Config(), configs.tiny()))
        if option.name == "--final-fraction":
            default = f"{default}; SFT: {said(Config(), 'sft.final_fraction')}"
            tiny = default
        told = default if default == tiny else f"{default}; tiny: {tiny}"
        if "(default: " in option.help:
            assert option.name not in DEFAULTS
        else:
            assert DEFAULTS.get(option.name, "") == told, option.name
            assert help_of(option).endswith(f" (default: {told})") == bool(told)


def said(made: Config, path: str) -> str:
    value = configs.get(made, path)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str("" if value in (None, ()) else value)


def test_options_of_every_training_set_all_of_them():
    made = tree(
        "--optimizer", "adamw-8bit", "--activation-checkpointing", "yes", "--dropout", "0.2"
    )
    for each in (made.sft, made.dpo, made.reward_training):
        assert (each.optimizer, each.activation_checkpointing, each.dropout) == (
            "adamw-8bit",
            True,
            0.2,
        )
    found = {each.option for each in differences(tree(), made)}
    assert found == {"--optimizer", "--activation-checkpointing", "--dropout"}
    assert tree("--activation-checkpointing", "no") == tree()
    for argv in (["--activation-checkpointing", "maybe"], ["--optimizer", "sgd"]):
        with pytest.raises(InputError, match=f"^{argv[0]}: found '{argv[1]}', wanted "):
            tree(*argv)
    assert (OPTIMIZERS, SCHEDULES) == (train_config.OPTIMIZERS, train_config.SCHEDULES)


def test_bad_lines_are_skipped_with_or_without_a_value(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "q"}\n')
    for argv in (["--skip-bad"], ["--skip-bad", "yes"]):
        made = tree(*argv, "--prompts", str(path))
        assert (made.skip_bad, made.prompts_file) == (True, str(path))
        assert {each.option for each in differences(tree("--prompts", str(path)), made)} == {
            "--skip-bad"
        }
    assert tree("--skip-bad", "no") == tree()


def test_files_of_data_and_templates_belong_to_the_run(tmp_path: Path):
    path = tmp_path / "file"
    for option in ("--eft-eval", "--chat-template"):
        path.write_text("one")
        before = tree(option, str(path))
        path.write_text("other")
        (found,) = differences(before, tree(option, str(path)))
        assert found.option == f"{option} (the file's content)"
        with pytest.raises(InputError, match=f"^{option} .*none: .*wanted a readable file"):
            tree(option, str(tmp_path / "none"))
    with pytest.raises(InputError, match="--eft-eval: found with --eval-judged 0"):
        tree("--eft-eval", str(path), "--eval-judged", "0")


def test_evaluations_need_pairs_that_are_held_out():
    made = tree("--held-out-pairs", "0.1", "--evaluate-every", "5", "--patience", "2")
    assert (made.held_out_pairs, made.dpo.evaluate_every, made.dpo.patience) == (0.1, 5, 2)
    for argv in (["--held-out-pairs", "0.1"], ["--evaluate-every", "5"], ["--patience", "2"]):
        with pytest.raises(InputError, match=f"^{argv[0]}: found {argv[1]} alone, wanted --"):
            tree(*argv)


def test_pairwise_gives_labels_that_robust_cannot_take():
    """It inverts flips of certain labels; of a probability it may leave 0..1."""
    for loss in LOSSES:
        given = ("--reward", "pairwise", "--loss", loss)
        if loss == "robust":
            with pytest.raises(InputError, match="--loss: found 'robust' with --reward pairwise"):
                tree(*given)
        else:
            assert tree(*given, "--judge", "direct").judge.mode == "direct"


def test_values_of_python_callers_are_checked_too():
    arguments = read_options([])
    arguments.candidates = 1
    with pytest.raises(InputError, match="--candidates: found 1"):
        from_options(arguments)


def test_json_and_back(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    made = tree("--prompts", str(tmp_path / "p.jsonl"), "--top-p", "0.5", "--seed", "9")
    back = from_json(json.loads(json.dumps(made.to_json())))
    assert back == made
    assert differences(made, back) == []


def test_json_with_an_unknown_field_is_refused():
    with pytest.raises(InputError, match="'temprature'"):
        from_json({"candidates": {"temprature": 1.0}})


def test_differences_name_options_and_leave_the_folder_out():
    made = dataclasses.replace(tree("--seed", "1"), out="a")
    other = dataclasses.replace(tree("--seed", "2", "--beta", "0.3", "--reward", "random"), out="b")
    found = {each.option: (each.there, each.here) for each in differences(made, other)}
    assert found == {"--seed": (1, 2), "--beta": (0.1, 0.3), "--reward": ("self", "random")}
    other = tree("--seed", "1", "--dropout", "0.3")
    assert [each.option for each in differences(made, other)] == ["--dropout"]  # of three trainings


def test_a_field_without_an_option_is_named_by_its_place():
    made = tree()
    row = made.to_json()
    row["dpo"]["from_an_older_version"] = 1
    assert [each.option for each in differences(row, made)] == ["dpo.from_an_older_version"]


def test_a_field_that_came_later_has_its_default_in_an_older_run():
    made = tree()
    row = made.to_json()
    del row["dpo"]["share_prompts"]
    assert differences(row, made) == []
    apart = dataclasses.replace(made, dpo=dataclasses.replace(made.dpo, share_prompts=False))
    assert [each.option for each in differences(row, apart)] == ["dpo.share_prompts"]


def test_files_count_by_content(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n')
    before = tree("--prompts", str(path))
    path.touch()
    assert differences(before, tree("--prompts", str(path))) == []
    path.write_text('{"prompt": "b"}\n')
    found = differences(before, tree("--prompts", str(path)))
    assert [each.option for each in found] == ["--prompts (the file's content)"]


def test_a_changed_rubric_is_another_run(tmp_path: Path):
    path = tmp_path / "r.jinja"
    path.write_text("{{ prompt }}\n{{ response }}")
    before = tree("--rubric", str(path))
    path.write_text("{{ prompt }}\n{{ response }}\nBe strict.")
    found = differences(before, tree("--rubric", str(path)))
    assert [each.option for each in found] == ["--rubric (the file's content)"]


def test_options_of_pairs():
    made = tree("--min-margin", "0.5", "--length-control", "0.1", "--min-judgements", "2")
    pairs = made.pairs
    assert (pairs.min_margin, pairs.length_control, pairs.min_judgements) == (0.5, 0.1, 2)
    for argv in (["--length-control", "1"], ["--min-margin", "-1"], ["--min-judgements", "0"]):
        with pytest.raises(InputError, match=f"{argv[0]}: found"):
            tree(*argv)


def test_more_judgements_wanted_than_there_are():
    with pytest.raises(InputError, match="--min-judgements: found 4, wanted at most the 3"):
        tree("--min-judgements", "4")
    with pytest.raises(InputError, match="--min-judgements: found 2, wanted at most the 1"):
        tree("--min-judgements", "2", "--judge", "expected")
    assert tree("--min-judgements", "4", "--judge-samples", "4").pairs.min_judgements == 4
    for reward, most in (("best-of-n", 3), ("gold", 1), ("pairwise", 3), ("constitution", 1)):
        argv = ["--model", "tiny", "--reward", reward, "--min-judgements"]
        assert tree(*argv, str(most)).pairs.min_judgements == most
        with pytest.raises(InputError, match=f"wanted at most the {most} that"):
            tree(*argv, str(most + 1))
    for reward in ("pairwise", "constitution"):
        with pytest.raises(InputError, match="--min-margin: found 2, wanted at most 1"):
            tree("--reward", reward, "--min-margin", "2")


def test_a_relative_file_is_the_same_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.chdir(tmp_path)
    assert tree("--prompts", "p.jsonl") == tree("--prompts", str(tmp_path / "p.jsonl"))
