"""A step of TRL's trainers on given token ids: its own loop, collator, optimizer and defaults."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from benchmarks.train_clock import StepClock
from benchmarks.train_work import BETA, LEARNING_RATE, TrainWork


def run_trl(work: TrainWork, folder: str, options: dict[str, Any], clock: StepClock) -> None:
    """A process's whole work: `work.steps` + 1 steps. options: of DPOConfig or SFTConfig."""
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(work.device)
    with tempfile.TemporaryDirectory() as out:
        shared = {
            "output_dir": out,
            "per_device_train_batch_size": work.rows,
            "max_steps": work.steps + 1,
            "learning_rate": LEARNING_RATE,
            "bf16": work.dtype == "bf16",
            "use_cpu": work.device == "cpu",
            "dataloader_pin_memory": False,
            "max_length": None,
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "report_to": [],
        }
        make = _dpo if work.kind == "dpo" else _sft
        trainer = make(work, model, shared | options, clock)
        trainer.remove_callback(transformers.PrinterCallback)
        clock.begin()
        trainer.train()
    clock.losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]


def _dpo(work: TrainWork, model: Any, options: dict[str, Any], clock: StepClock) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnTokens(DPOTrainer):
        """Its collator takes token ids; only its preparation of the data wants text."""

        def _prepare_dataset(self, dataset, *arguments, **named):
            return dataset

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, ids, strict=True)) for ids in work.ids(model.config.vocab_size)]
    return OnTokens(
        model=model,
        args=DPOConfig(beta=BETA, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        callbacks=[_ticking(clock)],
    )


def _sft(work: TrainWork, model: Any, options: dict[str, Any], clock: StepClock) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": prompt + response,
            "completion_mask": [0] * len(prompt) + [1] * len(response),
        }
        for prompt, response in work.ids(model.config.vocab_size)
    ]
    return SFTTrainer(
        model=model,
        args=SFTConfig(completion_only_loss=True, **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=_tokenizer(),
        callbacks=[_ticking(clock)],
    )


def _ticking(clock: StepClock) -> Any:
    from transformers import TrainerCallback

    class Ticking(TrainerCallback):
        def on_step_end(self, args, state, control, **named):
            clock.tick(None)

    return Ticking()


def _tokenizer() -> Any:
    """Wanted, although nothing is text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"<end>": 0, "a": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
