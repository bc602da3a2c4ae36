"""A model folder that cannot be used is refused in one line that names the file or the tensor."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    tokenization_utils_base,
)

from srlm_fast.model import (
    PRESETS,
    ModelConfig,
    ModelError,
    PackedContext,
    chat,
    load_model,
    random_model,
    resolve_device,
    resolve_dtype,
)
from srlm_fast.model.load import find_folder, read_tokenizer


def byte_tokenizer():
    """256 bytes and an end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|end|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


CONFIG = ModelConfig(
    family="llama",
    vocab_size=264,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    eos_token_ids=(0,),
)


@pytest.fixture
def folder(tmp_path):
    random_model(CONFIG, byte_tokenizer()).save(tmp_path / "model")
    return tmp_path / "model"


def check_refused(source, *wanted):
    with pytest.raises(ModelError) as error:
        load_model(source)
    message = str(error.value)
    assert "\n" not in message
    for part in wanted:
        assert part in message, message


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_round_trip_is_exact_and_transformers_agrees(folder):
    ours = load_model(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = chat.encode(ours.tokenizer, "Grüße, 世界 🙂")
    context = PackedContext([len(ids)], ours.config.windows)
    with torch.no_grad():
        logits = ours(torch.tensor(ids), context.positions, context) @ ours.head.T
        wanted = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert ours.tokenizer.decode(ids).endswith("### Response:\n")
    assert ours.eos_token_ids == (0,)


def test_saved_tokenizer_carries_the_default_chat_template(folder):
    load_model(folder).save(folder.parent / "again")
    assert load_model(folder.parent / "again").tokenizer.chat_template == chat.DEFAULT_TEMPLATE


def test_load_weights_replaces_in_place(folder):
    other = random_model(CONFIG, byte_tokenizer(), seed=5)
    pointer, version = other.layers[0].qkv.weight.data_ptr(), other.weights_version
    other.load_weights(folder)
    assert other.layers[0].qkv.weight.data_ptr() == pointer
    assert other.weights_version == version + 1
    assert torch.equal(other.embed.weight, load_model(folder).embed.weight)


def test_num_parameters_counts_what_is_stored():
    for config in (CONFIG, CONFIG.replace(family="qwen3", qk_norm=True, tie_word_embeddings=True)):
        model = random_model(config)
        assert config.num_parameters() == sum(p.numel() for p in model.parameters())


def test_presets_have_the_published_sizes():
    published = {"llama-2-7b": 6.74, "llama-2-70b": 68.98, "llama-3-8b": 8.03, "mistral-7b": 7.24}
    published |= {"qwen2.5-0.5b": 0.494, "qwen2.5-7b": 7.62, "qwen3-0.6b": 0.596, "qwen3-8b": 8.19}
    for name, billions in published.items():
        assert PRESETS[name].config.num_parameters() / 1e9 == pytest.approx(billions, rel=2e-3)


def test_missing_folder_and_near_preset(tmp_path):
    check_refused(tmp_path / "nowhere", "nowhere", "no such folder")
    check_refused("llama-2-70", "did you mean llama-2-70b")
    (tmp_path / "file").write_text("x")
    check_refused(tmp_path / "file", "is a file")
    check_refused(tmp_path, "no config.json")


def test_hub_id_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    check_refused(
        "some-org/some-model", "some-org/some-model", "not in the local Hugging Face cache"
    )


def test_hub_id_in_the_local_cache(monkeypatch, folder, tmp_path):
    cache = tmp_path / "hub" / "models--org--name"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots").mkdir()
    folder.rename(cache / "snapshots" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load_model("org/name").config.hidden_size == 32


def test_foreign_configurations(folder):
    edit_config(folder, model_type="gpt_neox")
    check_refused(folder, "model_type 'gpt_neox'", "llama")
    edit_config(folder, model_type="llama", hidden_size=0)
    check_refused(folder, "hidden_size")
    edit_config(folder, hidden_size=32, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    check_refused(folder, "rope scaling 'dynamic'")
    (folder / "config.json").write_text("{")
    check_refused(folder, "config.json", "found no JSON")


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": None},
        {"rope_theta": "x", "rope_parameters": None},
        {"rope_parameters": "abc"},
        {"rope_parameters": {"rope_type": "linear", "factor": "2"}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
        {"eos_token_id": "x"},
        {"hidden_act": "gelu"},
        {"vocab_size": True},
        {"num_key_value_heads": 3},
        {"num_attention_heads": 64, "head_dim": None},
        {"model_type": "mistral", "sliding_window": "8"},
        {"model_type": "mistral", "sliding_window": 8, "layer_types": ["full_attention"]},
    ],
)
def test_a_value_of_the_configuration_is_named(folder, changes):
    edit_config(folder, **changes)
    check_refused(folder, "config.json: ")


def test_tokenizer_of_another_model(folder):
    edit_config(folder, vocab_size=200)
    check_refused(folder, "the tokenizer has the id 256", "vocab_size 200")


def test_generation_config_and_chat_template_are_checked(folder):
    (folder / "generation_config.json").write_text("[]")
    check_refused(folder, "generation_config.json", "JSON object")
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    check_refused(folder, "generation_config.json", "eos_token_id")
    (folder / "generation_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    check_refused(folder, "chat template cannot render a conversation of user")


def test_weights_of_another_shape(folder):
    edit_config(folder, intermediate_size=50)
    check_refused(folder, "model.layers.0.mlp.down_proj.weight", "[32, 48]", "[32, 50]")


def test_weights_of_another_depth(folder):
    edit_config(folder, num_hidden_layers=1)
    check_refused(folder, "model.layers.1.", "no place")
    edit_config(folder, num_hidden_layers=3)
    check_refused(folder, "model.layers.2.", "missing")


def test_a_missing_tensor_is_named(folder):
    edit_weights(folder, lambda weights: weights.pop("model.layers.1.self_attn.k_proj.weight"))
    check_refused(folder, "model.layers.1.self_attn.k_proj.weight is missing")


def test_old_computed_buffers_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda weights: weights.update({name: torch.zeros(8)}))
    assert load_model(folder).config.num_layers == 2


@pytest.mark.parametrize("keep", [0, 5, 5000])
def test_empty_and_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    check_refused(folder, "model.safetensors", "empty" if keep == 0 else "truncated")


def test_missing_weights_and_other_formats(folder):
    (folder / "model.safetensors").unlink()
    check_refused(folder, "found none")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    check_refused(folder, "pytorch_model.bin", "safetensors")


def test_a_shard_that_is_not_there(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_refused(folder, "model-00001-of-00002.safetensors", "missing")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    check_refused(folder, "no safetensors index")


def test_no_tokenizer_and_a_broken_one(folder):
    (folder / "tokenizer.json").write_text("{}")
    check_refused(folder, "tokenizer cannot be read")
    (folder / "tokenizer.json").unlink()
    check_refused(folder, "no tokenizer")


def test_devices_and_dtypes():
    for name in ("cuda:99", "gpu", "mps:7"):
        with pytest.raises(ModelError, match="is not there; this machine has cpu"):
            resolve_device(name)
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ModelError, match="dtype 'int4' is unknown"):
        resolve_dtype("int4", torch.device("cpu"))
    assert resolve_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_window_masks_equal_a_loop():
    """A packed window of 3 sees the token and the two before it, inside its segment only."""
    context = PackedContext([5, 2], windows=(3,))
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 7, 2, 4).unbind(0)
    found = context.attend(0, q, k, v)
    start = [0, 0, 0, 1, 2, 5, 5]
    for t in range(7):
        keys = slice(start[t], t + 1)
        weights = torch.einsum("hk,shk->hs", q[t], k[keys]).mul(0.5).softmax(-1)
        wanted = torch.einsum("hs,shk->hk", weights, v[keys])
        torch.testing.assert_close(found[t], wanted)


def test_packed_context_refuses_empty_segments():
    with pytest.raises(ValueError, match="lengths"):
        PackedContext([3, 0], windows=(None,))


def test_a_text_over_the_tokenizers_length_is_no_matter_for_the_library(monkeypatch):
    said = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", said.append)
    tokenizer = read_tokenizer(find_folder("tiny"))
    tokenizer.model_max_length = 8
    assert len(tokenizer.encode("so " * 20)) > 8
    assert not said
