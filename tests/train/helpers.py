"""A model small enough for every test here, and rows and pairs for it."""

from __future__ import annotations

import numpy as np
import torch

from srlm_fast.model import Model, ModelConfig, random_model
from srlm_fast.train import SftRow, TokenPair

VOCAB = 61
CONFIG = ModelConfig(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    eos_token_ids=(0,),
)


def small_model(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> Model:
    return random_model(CONFIG.replace(**changes), seed=seed, dtype=dtype, std=0.3)


def make_rows(num: int, seed: int = 0) -> list[SftRow]:
    """Rows of various lengths; responses repeat the prompt's last token: something to learn."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        prompt = rng.integers(1, VOCAB, rng.integers(1, 9)).tolist()
        rows.append(SftRow(prompt, [prompt[-1]] * int(rng.integers(1, 6)) + [0]))
    return rows


def make_pairs(num: int, seed: int = 0) -> list[TokenPair]:
    """Chosen repeats the prompt's last token, rejected is noise."""
    rng = np.random.default_rng(seed + 1)
    return [
        TokenPair(
            row.prompt_ids,
            row.response_ids,
            [*rng.integers(1, VOCAB, rng.integers(1, 7)).tolist(), 0],
            weight=float(rng.uniform(0.5, 2)),
            label=float(rng.uniform(0.6, 1)),
        )
        for row in make_rows(num, seed)
    ]


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same_weights(left: Model, right: Model) -> None:
    """Bit for bit."""
    ours, theirs = weights_of(left), weights_of(right)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def make_trees(num_prompts: int, seed: int = 0) -> list[TokenPair]:
    """Pairs of few prompts, out of order: each prompt has four answers of various lengths, one of
    them a lone end token, and four pairs of them, so that answers are in two pairs each."""
    rng = np.random.default_rng(seed + 2)
    pairs = []
    for _ in range(num_prompts):
        prompt = rng.integers(1, VOCAB, rng.integers(1, 9)).tolist()
        lengths = [0, 1, *rng.integers(2, 7, 2)]
        answers = [[*rng.integers(1, VOCAB, length).tolist(), 0] for length in lengths]
        for better, worse in ((3, 0), (3, 1), (2, 1), (0, 2)):
            weight, label = float(rng.uniform(0.5, 2)), float(rng.uniform(0.6, 1))
            pairs.append(TokenPair(prompt, answers[better], answers[worse], weight, label))
    return [pairs[i] for i in rng.permutation(len(pairs))]
