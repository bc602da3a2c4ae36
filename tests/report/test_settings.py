"""Settings under the names of the options that set them."""

from __future__ import annotations

from srlm_fast.config import Config
from srlm_fast.options import OPTIONS
from srlm_fast.report.gather import flatten
from srlm_fast.report.settings import OTHER, settings

FLAT = flatten(Config(out="runs/x", inputs={"ift_file": "ab12"}).to_json())


def test_every_field_of_an_option_has_its_name_and_the_rest_their_own():
    groups = settings(FLAT)
    named = {one.name for title, group in groups.items() if title != OTHER for one in group}
    assert {option.name for option in OPTIONS if option.path in FLAT} <= named
    rest = {one.name: one.words for one in groups[OTHER]}
    assert "out" not in rest and not {path for o in OPTIONS for path in o.paths} & rest.keys()
    assert rest["SHA-256 of --ift"] == "ab12" and rest["prompts.seed_shots"] == "6"


def test_values_are_as_they_are_typed():
    given = FLAT | {"dpo.learning_rate": 1e-6, "stop_on_collapse": True, "log": ["wandb"]}
    words = {one.name: one.words for group in settings(given).values() for one in group}
    assert (words["--lr"], words["--stop-on-collapse"], words["--log"]) == ("1e-06", "yes", "wandb")


def test_a_field_that_differs_from_its_fellows_is_told_apart():
    given = FLAT | {"sft.schedule": "constant", "dpo.schedule": "linear"}
    words = {one.name: one.words for group in settings(given).values() for one in group}
    assert (words["--schedule"], words["--schedule (sft)"]) == ("linear", "constant")
