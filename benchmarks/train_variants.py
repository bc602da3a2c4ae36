"""Who takes the train step: name, what is passed to whom, why one cannot run. As a module, one of
them in this process: prints what a StepClock found as JSON.

    python -m benchmarks.train_variants VARIANT WORK(JSON) FOLDER CORES
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import OURS, installed, one_line
from benchmarks.train_work import TrainWork

NO_CHECKPOINTING = {"gradient_checkpointing": False}
PRECOMPUTED = {"precompute_ref_log_probs": True}


@dataclass(frozen=True)
class TrainVariant:
    """package: whose step it is. kinds: of work that it can do. known: a fact that makes running
    it pointless.
    """

    name: str
    package: str
    options: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("dpo",)
    shared: bool = False
    known: str | None = None
    module: str | None = None

    @property
    def version(self) -> str:
        return "" if self.package == "ours" else f"{self.package} {installed(self.package)}"

    def reason(self) -> str | None:
        """Why it does not run here; None if it does."""
        if self.known:
            return self.known
        if self.package == "ours":
            return None
        module = self.module or self.package
        return None if importlib.util.find_spec(module) else f"{module} not installed"


TRL_IGNORES = "TRL 1.16 ignores padding_free in its DPOTrainer: as plain"
BOTH = ("dpo", "sft")
VARIANTS = (
    TrainVariant(OURS, "ours", {"share_prompts": True}, shared=True),
    TrainVariant(
        f"{OURS} checkpointed",
        "ours",
        {"share_prompts": True, "activation_checkpointing": True},
        shared=True,
    ),
    TrainVariant(f"{OURS} unshared", "ours", {"share_prompts": False}),
    TrainVariant("TRL", "trl"),
    TrainVariant("TRL precomputed", "trl", PRECOMPUTED),
    TrainVariant("TRL precomputed, no checkpointing", "trl", PRECOMPUTED | NO_CHECKPOINTING),
    TrainVariant("TRL padding_free", "trl", {"padding_free": True}, known=TRL_IGNORES),
    TrainVariant("TRL Liger", "trl", {"use_liger_kernel": True}, module="liger_kernel"),
    TrainVariant("bare", "torch", kinds=BOTH),
    TrainVariant("bare shared", "torch", shared=True),
    TrainVariant(f"{OURS} sft", "ours", kinds=("sft",)),
    TrainVariant("TRL sft", "trl", kinds=("sft",)),
    TrainVariant("TRL sft, no checkpointing", "trl", NO_CHECKPOINTING, kinds=("sft",)),
)


def variant_named(name: str) -> TrainVariant:
    return next(variant for variant in VARIANTS if variant.name == name)


def take_steps(variant: TrainVariant, work: TrainWork, folder: str) -> dict[str, Any]:
    """In this process."""
    from benchmarks.train_clock import StepClock

    clock = StepClock(work.device)
    if variant.package == "ours":
        from benchmarks.train_ours import run_ours

        run_ours(work, folder, variant.options, clock)
    elif variant.package == "trl":
        from benchmarks.train_trl import run_trl

        run_trl(work, folder, variant.options, clock)
    else:
        from benchmarks.train_bare import run_bare

        run_bare(work, folder, variant.shared, clock)
    return clock.result()


def main(arguments: Sequence[str] | None = None) -> None:
    name, work, folder, cores = sys.argv[1:] if arguments is None else arguments
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, json.loads(cores))
    import torch

    torch.set_num_threads(len(json.loads(cores)))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = take_steps(variant_named(name), TrainWork(**json.loads(work)), folder)
    except Exception as error:  # a rival may fail in any way
        found = {"reason": f"failed: {one_line(error)}"}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
