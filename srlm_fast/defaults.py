"""The defaults that `--help` shows, as text: making the tree that holds them takes torch. A test
holds them against it.
"""

from __future__ import annotations

from srlm_fast.options import Option

DEFAULTS = {
    "--recipe": "default",
    "--prompt-temperature": "0.6; tiny: 1",
    "--prompt-top-p": "0.9",
    "--similarity": "0.7; tiny: 0.9",
    "--near-duplicate": "0.8; tiny: 0",
    "--num-prompts": "1024; tiny: 512",
    "--candidates": "4",
    "--temperature": "0.7; tiny: 1",
    "--top-p": "0.9",
    "--max-tokens": "512; tiny: 48",
    "--judge": "sampled",
    "--judge-stop": "end",
    "--judge-samples": "3",
    "--judge-temperature": "0.7",
    "--judge-max-tokens": "256; tiny: 64",
    "--reward": "self",
    "--revisions": "1",
    "--sft-lr": "5.5e-06; tiny: 0.001",
    "--sft-epochs": "1; tiny: 2",
    "--reward-lr": "9e-06; tiny: 0.001",
    "--reward-epochs": "1; tiny: 2",
    "--lr": "1e-06; tiny: 0.0001",
    "--beta": "0.1",
    "--loss": "sigmoid",
    "--label-smoothing": "0",
    "--gamma": "0",
    "--nll-weight": "0",
    "--epochs": "1",
    "--batch-pairs": "16",
    "--reference": "round",
    "--evaluate-every": "0",
    "--optimizer": "adamw",
    "--schedule": "cosine",
    "--final-fraction": "0.1; SFT: 0.2",
    "--warmup-steps": "0",
    "--weight-decay": "0",
    "--max-grad-norm": "1",
    "--dropout": "0",
    "--activation-checkpointing": "no",
    "--micro-batch-tokens": "2048; tiny: 16384",
    "--eval-count": "128; tiny: 400",
    "--eval-samples": "1; tiny: 4",
    "--eval-judged": "541",
}


def help_of(option: Option) -> str:
    """What the option does and its default, that of `--model tiny` beside it where it differs."""
    default = DEFAULTS.get(option.name)
    return option.help if default is None else f"{option.help} (default: {default})"
