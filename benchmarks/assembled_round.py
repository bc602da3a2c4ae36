"""A round of self-rewarding training put together from libraries: transformers' `generate`, a
regular expression, TRL's DPO trainer. The rival of `bench_round`.

    python -m benchmarks.assembled_round MODEL PROMPTS SETTINGS OUT

MODEL: a folder. PROMPTS: a run's `prompts.jsonl`. SETTINGS: JSON of `bench_round.settings`. Does
what a careful user would: prompts of like length share a batch, each judge prompt is read once for
its samples, the reference is computed once before training, nothing is checkpointed that fits.
Writes the model to OUT/model and prints, last, one line of JSON with seconds and counts by phase.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from srlm_fast.judge import Rubric, parse_score
from srlm_fast.records import read_jsonl
from srlm_fast.tiny.rubric import RUBRIC


class Assembled:
    """The libraries' objects, and the seconds and counts of each phase."""

    def __init__(self, folder: str, settings: dict[str, Any], rubric: Rubric, out: Path) -> None:
        self.settings, self.rubric, self.out = settings, rubric, out
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, settings["dtype"])
        )
        self.model = model.to(self.device).eval()
        self.seconds: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def round(self, prompts: Sequence[str]) -> dict[str, Any]:
        answers = self.timed("sample", lambda: self.answers(prompts))
        scores = self.timed("judge", lambda: self.judged(prompts, answers))
        self.timed("learn", lambda: self.train(self.pairs(prompts, answers, scores)))
        return {"seconds": self.seconds, "counts": self.counts, "loss": self.loss}

    def timed(self, name: str, work: Any) -> Any:
        start = time.perf_counter()
        found = work()
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - start
        return found

    def answers(self, prompts: Sequence[str]) -> list[list[str]]:
        s = self.settings
        return self.generate(prompts, "answer_tokens", s["candidates"], s["sampling"])

    def judged(
        self, prompts: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float | None]]:
        """The mean score of each answer, None where no judgement has one."""
        s = self.settings
        asked = [
            self.rubric.render(prompt, text)
            for prompt, texts in zip(prompts, answers, strict=True)
            for text in texts
        ]
        written = self.generate(asked, "judge_tokens", s["judgements"], s["judge_sampling"])
        means = iter([self.mean(texts) for texts in written])
        return [[next(means) for _ in texts] for texts in answers]

    def mean(self, texts: Sequence[str]) -> float | None:
        """Scores by the project's own regular expression, the specification of its kernels."""
        r = self.rubric
        read = (parse_score(text, pattern=r.pattern, low=r.low, high=r.high) for text in texts)
        scores = [score for score, _ in read if score == score]
        return sum(scores) / len(scores) if scores else None

    @torch.inference_mode()
    def generate(
        self, texts: Sequence[str], count: str, n: int, sampling: dict[str, Any]
    ) -> list[list[str]]:
        """n samples of each text, as user turns, in batches of texts of like length."""
        turns = [
            self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            for text in texts
        ]
        begin = self.tokenizer.bos_token
        add = bool(begin) and not turns[0].startswith(begin)
        ids = [self.tokenizer(turn, add_special_tokens=add)["input_ids"] for turn in turns]
        found: list[list[str]] = [[] for _ in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        size = max(1, self.settings["batch_sequences"] // n)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            padded = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            width = padded["input_ids"].shape[1]
            out = self.model.generate(
                **padded.to(self.device),
                do_sample=True,
                top_k=0,
                num_return_sequences=n,
                pad_token_id=self.tokenizer.pad_token_id,
                **sampling,
            )
            new = out[:, width:]
            ended = (new == self.tokenizer.eos_token_id).cumsum(1) - (
                new == self.tokenizer.eos_token_id
            ).long()
            self.counts[count] = self.counts.get(count, 0) + int((ended == 0).sum())
            decoded = self.tokenizer.batch_decode(new, skip_special_tokens=True)
            for place, i in enumerate(batch):
                found[i] = decoded[place * n : (place + 1) * n]
        return found

    def pairs(
        self,
        prompts: Sequence[str],
        answers: Sequence[Sequence[str]],
        scores: Sequence[Sequence[float | None]],
    ) -> list[dict[str, Any]]:
        """Highest against lowest mean score; equal ones give no pair."""
        rows = []
        for prompt, texts, means in zip(prompts, answers, scores, strict=True):
            known = [(mean, i) for i, mean in enumerate(means) if mean is not None]
            if not known or max(known)[0] == min(known)[0]:
                continue
            best, worst = (texts[pick(known)[1]] for pick in (max, min))
            rows.append(
                {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": best}],
                    "rejected": [{"role": "assistant", "content": worst}],
                }
            )
        self.counts["pairs"] = len(rows)
        return rows

    def train(self, pairs: list[dict[str, Any]]) -> None:
        s = self.settings
        config = DPOConfig(
            output_dir=str(self.out / "trl"),
            learning_rate=s["learning_rate"],
            beta=s["beta"],
            lr_scheduler_type="cosine",
            num_train_epochs=1,
            per_device_train_batch_size=s["batch_pairs"],
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=s["batch_pairs"],
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=self.device == "cpu",
            max_length=None,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=self.model,
            args=config,
            train_dataset=Dataset.from_list(pairs),
            processing_class=self.tokenizer,
        )
        self.loss = trainer.train().training_loss
        self.model.save_pretrained(self.out / "model")
        self.tokenizer.save_pretrained(self.out / "model")


def main() -> None:
    folder, prompts, settings, out = sys.argv[1:]
    torch.manual_seed(0)
    round_ = Assembled(folder, json.loads(settings), RUBRIC, Path(out))
    found = round_.round([row["text"] for row in read_jsonl(Path(prompts))])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
