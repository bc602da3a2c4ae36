"""Other engines that sample, on the same weights: transformers in three forms, and vLLM."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import transformers

from benchmarks.sampler_engine import Clock, Engine, Prompts, Turn
from benchmarks.sampler_models import TEMPERATURE, TOP_P, hf_model
from benchmarks.sampler_work import Work
from srlm_fast.model import Model

PAGE_TOKENS = 256  # of continuous batching, its default
SAMPLING = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}


class Generate(Engine):
    """`generate` on all prompts in one batch, padded on the left; in halves where memory ends."""

    stops = True

    def __init__(self, model: Model, work: Work, **settings: Any) -> None:
        self.model, self.more = hf_model(model), settings
        self.batch = len(work.lengths)
        self.settings = ", ".join(f"{name}={value}" for name, value in settings.items())

    def greedy(self, prompts: Prompts, new: int) -> tuple[list[list[int]], None]:
        """One at a time: a row beside padding is not bit for bit the row alone."""
        found = []
        for prompt in prompts:
            out = self._generate([prompt], max_new_tokens=new, do_sample=False)
            found.append(out[0, len(prompt) :].tolist())
        return found, None

    def turn(self, prompts: Prompts, work: Work, limit: float | None = None) -> Turn:
        while True:
            try:
                return self._turn(prompts, work, limit)
            except torch.cuda.OutOfMemoryError:
                if self.batch == 1:
                    raise
            torch.cuda.empty_cache()
            self.batch = -(-self.batch // 2)

    def _turn(self, prompts: Prompts, work: Work, limit: float | None) -> Turn:
        clock, tokens, first, made = Clock(self.model.device), 0, 0.0, 0
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            new = torch.tensor(work.new[part]).repeat_interleave(work.n)
            stop = _Stop(max(map(len, prompts[part])), new, clock, limit)
            self._generate(
                prompts[part],
                max_new_tokens=max(work.new[part]),
                num_return_sequences=work.n,
                stopping_criteria=transformers.StoppingCriteriaList([stop]),
                **SAMPLING,
            )
            first += stop.first
            made = stop.made
            tokens += int(new.clamp(max=made).sum())
            if stop.over:
                break
        note = "" if tokens == work.tokens else f"stopped: {tokens:,} of {work.tokens:,} tokens"
        if self.batch < len(work.lengths):
            note = f"{self.batch} prompts at once {note}".strip()
        return Turn(tokens, clock(), first=first if tokens == work.tokens else None, note=note)

    @torch.inference_mode()
    def _generate(self, prompts: Prompts, **settings: Any) -> torch.Tensor:
        longest = max(map(len, prompts))
        ids = [[0] * (longest - len(p)) + list(p) for p in prompts]
        mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
        device = self.model.device
        return self.model.generate(
            torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            eos_token_id=None,
            pad_token_id=0,
            **settings,
            **self.more,
        )


class _Stop(transformers.StoppingCriteria):
    """A limit of tokens for each row and of seconds for all; notes when the first token came."""

    def __init__(self, start: int, new: torch.Tensor, clock: Clock, limit: float | None) -> None:
        self.start, self.new, self.clock, self.limit = start, new, clock, limit
        self.made, self.first, self.over, self.began = 0, 0.0, False, clock(wait=False)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.made = input_ids.shape[1] - self.start
        if self.made == 1:
            self.first = self.clock() - self.began
        self.over = self.limit is not None and self.clock(wait=False) > self.limit
        self.new = self.new.to(input_ids.device)
        return torch.ones_like(self.new, dtype=torch.bool) if self.over else self.new <= self.made


class ContinuousBatching(Engine):
    """`generate_batch`. Under torch.inference_mode it logs an error and returns nothing, so it runs
    outside, and what it did not return is an error here.
    """

    def __init__(self, model: Model, work: Work, **settings: Any) -> None:
        if len(set(work.new)) > 1:
            raise ValueError("generate_batch takes one length for all requests")
        self.model = hf_model(model)
        if model.device.type == "cpu":
            # By itself it takes nine tenths of the memory, and fills it.
            longest = max(map(sum, zip(work.lengths, work.new, strict=True)))
            settings["num_blocks"] = 8 + work.samples * -(-longest // PAGE_TOKENS)
        self.config = transformers.ContinuousBatchingConfig(**settings)
        self.settings = ", ".join(f"{name}={value}" for name, value in settings.items())

    def greedy(self, prompts: Prompts, new: int) -> tuple[list[list[int]], None]:
        return self._generate(prompts, 1, new, do_sample=False), None

    def turn(self, prompts: Prompts, work: Work, limit: float | None = None) -> Turn:
        clock = Clock(self.model.device)
        out = self._generate(prompts, work.n, max(work.new), **SAMPLING)
        return Turn(sum(map(len, out)), clock())

    def _generate(self, prompts: Prompts, n: int, new: int, **settings: Any) -> list[list[int]]:
        config = transformers.GenerationConfig(
            max_new_tokens=new, num_return_sequences=n, eos_token_id=-1, pad_token_id=0, **settings
        )
        with torch.no_grad():
            out = self.model.generate_batch(
                [list(prompt) for prompt in prompts],
                generation_config=config,
                continuous_batching_config=self.config,
            )
        found = [one.generated_tokens for one in out.values() if one.error is None]
        if len(found) != n * len(prompts) or any(len(tokens) != new for tokens in found):
            raise RuntimeError(f"generate_batch returned {len(found)} of {n * len(prompts)}")
        return found


class Vllm(Engine):
    """vLLM on weights of its own making of the same shape: reading ours would take minutes."""

    def __init__(self, model: Model, work: Work, **settings: Any) -> None:
        import json
        import tempfile
        from pathlib import Path

        import vllm

        self.vllm, self.folder = vllm, tempfile.TemporaryDirectory()
        config = model.config.to_hf() | {"architectures": ["LlamaForCausalLM"]}
        path = Path(self.folder.name) / "config.json"
        path.write_text(json.dumps(config | {"dtype": "bfloat16"}))
        longest = max(map(sum, zip(work.lengths, work.new, strict=True)))
        free, total = torch.cuda.mem_get_info()
        self.engine = vllm.LLM(
            self.folder.name,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=longest + 1,
            gpu_memory_utilization=0.9 * free / total,
            **settings,
        )

    def turn(self, prompts: Prompts, work: Work, limit: float | None = None) -> Turn:
        params = [
            self.vllm.SamplingParams(
                n=work.n,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                max_tokens=new,
                ignore_eos=True,
                detokenize=False,
            )
            for new in work.new
        ]
        clock = Clock("cuda")
        out = self.engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], params, use_tqdm=False
        )
        samples = itertools.chain.from_iterable(one.outputs for one in out)
        return Turn(sum(len(one.token_ids) for one in samples), clock())

    def prefill(self, prompts: Prompts) -> float:
        work = Work("prefill", tuple(map(len, prompts)), 1, (1,) * len(prompts))
        return self.turn(prompts, work).seconds

    def close(self) -> None:
        del self.engine
        self.folder.cleanup()
