"""Numbers that were asked for and that the user's files do not hold."""

from __future__ import annotations

from srlm_fast.config import Config, recipe

from .material import Material


def few_rows(config: Config, material: Material) -> list[str]:
    """A line for each number other than the recipe's of which a file has fewer rows."""
    usual, notes = recipe(config.recipe, config.model), list[str]()
    asked, there = config.num_prompts, len(material.prompts)
    if config.prompts_file and asked != usual.num_prompts and there < asked:
        notes.append(f"--num-prompts {asked}: --prompts leaves {there} to answer, each round all")
    asked, there = config.evaluation.num_prompts, len(material.held_out)
    if asked != usual.evaluation.num_prompts and there < asked:
        notes.append(f"--eval-count {asked}: only {there} to hold out, all taken")
    return notes
