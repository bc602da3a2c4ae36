"""Files with fewer rows than were asked for: said where the user asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from srlm_fast.config import Config, EvaluationConfig
from srlm_fast.loop.few_rows import few_rows
from srlm_fast.loop.material import gather


def test_a_number_that_a_file_does_not_hold_is_told_where_it_was_asked_for(tmp_path: Path):
    files = {"prompts": 4, "eval": 3}
    for name, count in files.items():
        rows = (f"Name {name} fruit {i}.\n" for i in range(count))
        (tmp_path / f"{name}.txt").write_text("".join(rows))
    config = Config(
        model="m",
        prompts_file=str(tmp_path / "prompts.txt"),
        eval_prompts_file=str(tmp_path / "eval.txt"),
    )
    asked = replace(config, num_prompts=50, evaluation=EvaluationConfig(num_prompts=40))
    assert few_rows(config, gather(config)) == []
    assert few_rows(asked, gather(asked)) == [
        "--num-prompts 50: --prompts leaves 4 to answer, each round all",
        "--eval-count 40: only 3 to hold out, all taken",
    ]
    few = replace(config, num_prompts=4, evaluation=EvaluationConfig(num_prompts=3))
    assert few_rows(few, gather(few)) == []
