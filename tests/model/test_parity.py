"""Logits equal transformers' within fp32 rounding, for each family, at odd sizes, from a folder on
disk and back.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from srlm_fast.model import PackedContext
from srlm_fast.model.decoder import empty_model
from srlm_fast.model.load import read_config
from srlm_fast.model.weights import read_weights

SMALL = {
    "vocab_size": 107,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}
MIXED = ["full_attention", "sliding_attention", "sliding_attention"]

CASES = {
    "llama-2": LlamaConfig(**SMALL, num_attention_heads=3, num_key_value_heads=3),
    "llama-3-gqa-tied": LlamaConfig(
        **SMALL, num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True
    ),
    "llama-3.1-rope": LlamaConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=1, rope_parameters=LLAMA3_ROPE
    ),
    "llama-linear-rope": LlamaConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, rope_parameters=LINEAR
    ),
    "llama-biases": LlamaConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, attention_bias=True, mlp_bias=True
    ),
    "mistral-window": MistralConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, sliding_window=7
    ),
    "mistral-head-dim": MistralConfig(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=20, sliding_window=None
    ),
    "qwen2": Qwen2Config(**SMALL, num_attention_heads=6, num_key_value_heads=3),
    "qwen2-window": Qwen2Config(
        **SMALL,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=5,
        max_window_layers=1,
    ),
    "qwen2-yarn": Qwen2Config(
        **SMALL, num_attention_heads=4, num_key_value_heads=2, rope_parameters=YARN
    ),
    "qwen3": Qwen3Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=18),
    "qwen3-bias-mixed": Qwen3Config(
        **SMALL,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=12,
        attention_bias=True,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=MIXED,
    ),
}


def their_model(config, folder, **options):
    """A transformers model whose every weight is random (norms and biases too), saved to
    `folder`.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder, **options)
    return model


def our_model(folder):
    model = empty_model(read_config(folder), "cpu", torch.float32)
    read_weights(model, folder)
    return model


def our_logits(model, rows):
    context = PackedContext([len(row) for row in rows], model.config.windows)
    hidden = model(
        torch.tensor([token for row in rows for token in row]), context.positions, context
    )
    return (hidden @ model.head.T).split([len(row) for row in rows])


def token_rows(lengths, vocab):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name, tmp_path):
    theirs = their_model(CASES[name], tmp_path / "a")
    ours = our_model(tmp_path / "a")
    rows = token_rows([37, 1, 12, 23], ours.config.vocab_size)
    with torch.no_grad():
        for row, logits in zip(rows, our_logits(ours, rows), strict=True):
            wanted = theirs(torch.tensor([row])).logits[0]
            torch.testing.assert_close(logits, wanted, rtol=2e-5, atol=2e-4 * wanted.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_saved_folder_loads_in_transformers(name, tmp_path):
    their_model(CASES[name], tmp_path / "a", max_shard_size="40KB")
    ours = our_model(tmp_path / "a")
    ours.save(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", attn_implementation="eager")
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "a", attn_implementation="eager")
    for (left, a), (right, b) in zip(
        first.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert left == right
        assert torch.equal(a, b), left
    tokens = torch.tensor(token_rows([29], ours.config.vocab_size))
    assert torch.equal(first(tokens).logits, again(tokens).logits)


@pytest.mark.parametrize("name", ["llama-3-gqa-tied", "qwen2", "qwen3"])
def test_sharded_save_round_trip(name, tmp_path):
    from srlm_fast.model.save import save_model

    their_model(CASES[name], tmp_path / "a")
    ours = our_model(tmp_path / "a")
    save_model(ours, tmp_path / "b", max_shard_bytes=30_000)
    files = sorted(f.name for f in (tmp_path / "b").glob("*.safetensors"))
    assert len(files) > 2
    again = our_model(tmp_path / "b")
    for (left, a), (_, b) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), left
    AutoModelForCausalLM.from_pretrained(tmp_path / "b")


def test_padded_vocabulary_keeps_its_rows(tmp_path):
    """Rows of the embedding beyond the tokenizer's size are kept and saved as they were."""
    config = Qwen2Config(**SMALL | {"vocab_size": 128}, num_attention_heads=4)
    config.num_key_value_heads = 2
    their_model(config, tmp_path / "a")
    our_model(tmp_path / "a").save(tmp_path / "b")
    name = "model.embed_tokens.weight"
    before = load_file(tmp_path / "a" / "model.safetensors")[name]
    after = load_file(tmp_path / "b" / "model.safetensors")[name]
    assert before.shape[0] == 128
    assert torch.equal(before, after)


def test_gradients_equal_transformers(tmp_path):
    theirs = their_model(CASES["qwen3"], tmp_path / "a")
    ours = our_model(tmp_path / "a")
    row = token_rows([23], ours.config.vocab_size)[0]
    (our_logits(ours, [row])[0].float().log_softmax(-1)[:, 5].sum()).backward()
    theirs(torch.tensor([row])).logits[0].float().log_softmax(-1)[:, 5].sum().backward()
    wanted = dict(theirs.named_parameters())["model.layers.0.self_attn.k_proj.weight"].grad
    start, rows = 4 * 18, 2 * 18
    found = ours.layers[0].qkv.weight.grad[start : start + rows]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max())
