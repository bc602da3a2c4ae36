"""What every variant of the train step's benchmark does: weights, random token ids, FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.sampler_models import MODELS, make_model
from srlm_fast.model import ModelConfig

BETA, LEARNING_RATE = 0.1, 1e-6


@dataclass(frozen=True)
class TrainWork:
    """One step. dpo: `rows` pairs of a prompt and two responses; sft: `rows` of one response."""

    model: str
    kind: str  # "dpo" or "sft"
    rows: int
    prompt: int  # tokens
    response: int  # tokens of each response
    dtype: str  # of ours: "bf16" or "fp32"
    device: str
    steps: int  # timed ones, after one that is not
    rivals: bool = True  # False: ours against ours

    @property
    def name(self) -> str:
        return f"{self.model} {self.kind} {self.rows} x {self.prompt}+{self.response}"

    @property
    def responses(self) -> int:
        return 2 if self.kind == "dpo" else 1

    @property
    def tokens(self) -> int:
        """With a prompt before each response, whoever computes it how often."""
        return self.rows * self.responses * (self.prompt + self.response)

    def ids(self, vocab: int) -> list[list[list[int]]]:
        """[rows][prompt, response ...] token ids."""
        draw = np.random.default_rng(0)
        lengths = [self.prompt, *[self.response] * self.responses]
        return [[draw.integers(0, vocab, n).tolist() for n in lengths] for _ in range(self.rows)]

    def flops(self, config: ModelConfig, shared: bool) -> float:
        """Of matmuls, forward and backward: 6 per weight and token, the head on response tokens
        only; attention 12 H K per pair of tokens that see each other. shared: each prompt once.
        Nothing that is computed again is counted.
        """
        c, prompts = config, 1 if shared else self.responses
        heads = c.num_heads * c.head_dim
        qkv_o = c.hidden_size * (2 * heads + 2 * c.num_kv_heads * c.head_dim)
        layer = qkv_o + 3 * c.hidden_size * c.intermediate_size
        tokens = prompts * self.prompt + self.responses * self.response
        own = [prompts * self.prompt**2 / 2, self.responses * self.response**2 / 2]
        seen = sum(own) + self.responses * self.response * self.prompt
        head = self.responses * self.response * c.vocab_size * c.hidden_size
        return self.rows * (6 * head + c.num_layers * (6 * tokens * layer + 12 * heads * seen))


def save_weights(work: TrainWork, folder: str) -> None:
    """Random ones in Hugging Face layout, bf16, with a tokenizer that is not used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    make_model(MODELS[work.model], work.device, torch.bfloat16).save(folder)
    Tokenizer(WordLevel({"<end>": 0, "a": 1}, unk_token="a")).save(
        str(Path(folder) / "tokenizer.json")
    )
