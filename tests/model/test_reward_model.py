"""Reward models score as transformers' do, from a folder on disk and back."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.testing import assert_close
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from srlm_fast.model import ModelError, load_model, load_reward_model, with_score_head
from srlm_fast.model import reward_model as subject
from srlm_fast.model.reward_model import ClassifierReward, DecoderReward, conversation_ids
from tests.model.test_load import byte_tokenizer

SMALL = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_labels": 1,
    "max_position_embeddings": 256,
}
DECODERS = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2, pad_token_id=0),
    "llama-tied": LlamaConfig(**SMALL, num_key_value_heads=4, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2, pad_token_id=None),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, pad_token_id=None),
}
ENCODERS = {
    "bert": (BertForSequenceClassification, BertConfig(**SMALL)),
    "deberta": (
        DebertaV2ForSequenceClassification,
        DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    ),
}
TEXTS = [
    ("Name a fruit.", "A pear."),
    ("Name a fruit.", ""),
    ("Zähle bis drei: 🙂", "Eins, zwei, drei. " * 5),
    ("<|end|> ### Response:", "x"),
    ("Why?", "Because of the rain, the wind and the long road home."),
]
CONVERSATIONS = [
    [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    for prompt, answer in TEXTS
]
TOO_LONG = [
    {"role": "user", "content": "x" * 400},
    {"role": "assistant", "content": "y"},
]


def random_weights(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name.lower() else 0.0, 0.3)
    return model.eval()


def decoder_folder(config, folder, tokenizer=None):
    kind = AutoModelForSequenceClassification
    random_weights(kind.from_config(config, attn_implementation="eager")).save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def word_tokenizer():
    """Single characters, [CLS] a [SEP] b [SEP], no chat template."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    vocab = {token: i for i, token in enumerate([*special, *map(chr, range(32, 127))])}
    made = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=200,
    )


def encoder_folder(name, folder):
    kind, config = ENCODERS[name]
    random_weights(kind(config)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def their_decoder_scores(folder, rows):
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [theirs(torch.tensor([row])).logits[0, 0].item() for row in rows]


@pytest.mark.parametrize("name", DECODERS)
def test_packed_scores_are_transformers_and_survive_a_round_trip(name, tmp_path, monkeypatch):
    folder = decoder_folder(DECODERS[name], tmp_path / "theirs")
    ours = load_reward_model(folder)
    assert isinstance(ours, DecoderReward)
    rows = [conversation_ids(ours.model, messages) for messages in CONVERSATIONS]
    wanted = their_decoder_scores(folder, rows)
    assert max(wanted) - min(wanted) > 0.1
    found = ours.scores(CONVERSATIONS)
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(subject, "MAX_TOKENS", 100)  # other company, the same scores
    assert_close(ours.scores(CONVERSATIONS[::-1])[::-1], wanted, rtol=1e-4, atol=1e-4)
    ours.model.save(tmp_path / "ours")
    assert_close(their_decoder_scores(tmp_path / "ours", rows), wanted, rtol=1e-4, atol=1e-4)
    assert load_reward_model(tmp_path / "ours").scores(CONVERSATIONS) == pytest.approx(wanted, 2e-4)


def test_padding_at_the_end_is_not_scored_as_in_transformers(tmp_path):
    """A template that ends in the padding token: the score is that of the token before it."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    folder = decoder_folder(DECODERS["llama"], tmp_path / "m", tokenizer)
    ours = load_reward_model(folder)
    rows = [tokenizer(f"{prompt}<|end|>{answer}<|end|>")["input_ids"] for prompt, answer in TEXTS]
    assert rows[0][-1] == DECODERS["llama"].pad_token_id
    assert_close(
        ours.scores(CONVERSATIONS), their_decoder_scores(folder, rows), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_other_architectures_score_a_pair_of_texts_in_transformers(name, tmp_path, monkeypatch):
    folder = encoder_folder(name, tmp_path / "m")
    ours = load_reward_model(folder)
    assert isinstance(ours, ClassifierReward)
    theirs, tokenizer = ours.model, ours.tokenizer
    alone = [
        theirs(**tokenizer(prompt, answer, return_tensors="pt")).logits[0, 0].item()
        for prompt, answer in TEXTS
    ]
    assert max(alone) - min(alone) > 0.01
    assert_close(ours.scores(CONVERSATIONS), alone, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(subject, "MAX_TOKENS", 90)
    assert_close(ours.scores(CONVERSATIONS), alone, rtol=1e-4, atol=1e-4)
    assert ours.scores([TOO_LONG, CONVERSATIONS[0]])[0] is None


def test_a_conversation_longer_than_the_context_has_no_score(tmp_path):
    ours = load_reward_model(decoder_folder(DECODERS["llama"], tmp_path / "m"))
    found = ours.scores([TOO_LONG, *CONVERSATIONS])
    assert found[0] is None
    assert None not in found[1:]
    assert ours.scores([]) == []


def test_a_score_head_on_a_decoder_shares_its_tensors(tmp_path):
    model = load_model("tiny")
    made = with_score_head(model, seed=3)
    assert made.layers is model.layers and made.lm_head is None
    assert made.score.weight.std().item() == pytest.approx(model.config.hidden_size**-0.5, rel=0.3)
    made.save(tmp_path / "m")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    assert theirs.config.num_labels == 1
    assert torch.equal(theirs.score.weight, made.score.weight)
    assert torch.equal(with_score_head(model, 3).score.weight, made.score.weight)
    assert not torch.equal(with_score_head(model, 4).score.weight, made.score.weight)
    stored = made.config.num_parameters()
    assert stored == sum(weight.numel() for weight in made.parameters())


def test_folders_that_are_no_reward_model_are_refused(tmp_path):
    with pytest.raises(ModelError, match="wanted a ...ForSequenceClassification"):
        load_reward_model("tiny")
    two = LlamaConfig(**SMALL | {"num_labels": 3}, num_key_value_heads=2)
    with pytest.raises(ModelError, match="3 labels; wanted one"):
        load_reward_model(decoder_folder(two, tmp_path / "three"))
    folder = encoder_folder("bert", tmp_path / "torn")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be read"):
        load_reward_model(folder)
    folder = encoder_folder("bert", tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="tensor classifier.bias is missing"):
        load_reward_model(folder)
    refusing = byte_tokenizer()
    refusing.chat_template = "{{ raise_exception('no answers here') }}"
    with pytest.raises(ModelError, match="chat template cannot be used .no answers here"):
        load_reward_model(decoder_folder(DECODERS["llama"], tmp_path / "refusing", refusing))
    folder = decoder_folder(DECODERS["llama"], tmp_path / "wrong")
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(hf | {"vocab_size": 300}))
    with pytest.raises(ModelError, match="embed_tokens.weight has shape"):
        load_reward_model(folder)
