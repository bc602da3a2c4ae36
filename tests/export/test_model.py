"""Exported folders: read by transformers' own loaders, in the form that vLLM and PEFT read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from srlm_fast.loop.state import weights_hash
from srlm_fast.model import ModelError, chat, load_model
from srlm_fast.model.load import find_folder
from srlm_fast.model.save import save_model
from srlm_fast.run_models import find_model, label

from .conftest import logits_of

IDS = list(range(5, 40))


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def transformers_logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0]


def test_transformers_has_our_logits_and_the_chat_template(made, export, tmp_path):
    out = tmp_path / "out"
    export("model", made, "--out", out)
    ours = load_model(made / "m2" / "model")
    torch.testing.assert_close(transformers_logits(out), logits_of(ours, IDS), atol=1e-4, rtol=1e-4)
    assert weights_hash(out) == weights_hash(made / "m2" / "model")
    tokenizer = AutoTokenizer.from_pretrained(out)
    message = [{"role": "user", "content": "List 3 fruits."}]
    asked = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    assert asked == chat.encode(ours.tokenizer, "List 3 fruits.")
    assert GenerationConfig.from_pretrained(out).eos_token_id == 0
    assert (out / "README.md").read_text().startswith("---\n")


@pytest.mark.parametrize("name", ["m1", "m2"])
def test_a_folder_has_what_vllm_and_transformers_4_look_for(made, name):
    """vLLM cannot be installed here; these are the fields that its loader reads."""
    folder = made / name / "model"
    hf = read(folder / "config.json")
    assert hf["architectures"] == ["LlamaForCausalLM"] and hf["model_type"] == "llama"
    assert hf["dtype"] == hf["torch_dtype"] == "float32"
    assert hf["rope_theta"] == hf["rope_parameters"]["rope_theta"] and hf["rope_scaling"] is None
    for field in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
        assert hf[field] > 0
    tokenizer = read(folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "local_files_only" not in tokenizer
    assert (folder / "chat_template.jinja").is_file() and (folder / "tokenizer.json").is_file()
    assert read(folder / "generation_config.json")["eos_token_id"] == 0


def test_in_another_dtype_shard_by_shard(made, export, tmp_path):
    run = tmp_path / "run"
    (run / "m1").mkdir(parents=True)
    (run / "config.json").write_text((made / "config.json").read_text())
    save_model(load_model(made / "m1" / "model"), run / "m1" / "model", max_shard_bytes=10**6)
    out = tmp_path / "out"
    export("model", run / "m1", "--out", out, "--dtype", "bf16")
    assert read(out / "config.json")["dtype"] == read(out / "config.json")["torch_dtype"]
    assert read(out / "config.json")["dtype"] == "bfloat16"
    files = sorted(out.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    index = read(out / "model.safetensors.index.json")
    assert len(files) > 2 and index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    whole = load_model(made / "m1" / "model", dtype="bfloat16").to(torch.float32)
    torch.testing.assert_close(transformers_logits(out), logits_of(whole, IDS), atol=1e-3, rtol=0)


def test_an_adapter_is_what_peft_and_vllm_read(adapted, export, tmp_path):
    out = tmp_path / "out"
    export("model", adapted, "--out", out)
    config = read(out / "adapter_config.json")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 6.0)
    assert config["bias"] == "none" and not config["modules_to_save"] and not config["use_dora"]
    tensors = load_file(out / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.3.mlp.down_proj"
    assert tensors[f"{stem}.lora_A.weight"].shape == (3, 384)
    assert tensors[f"{stem}.lora_B.weight"].shape == (128, 3)
    assert len(tensors) == 4 * 7 * 2
    card = (out / "README.md").read_text()
    assert 'library_name: "peft"' in card and "--max-lora-rank 8" in card


def test_merged_it_is_the_base_with_the_adapter(adapted, export, tmp_path):
    out = tmp_path / "out"
    export("model", adapted / "m1", "--out", out, "--merge", "--dtype", "float32")
    apart = logits_of(load_model(adapted / "m1" / "model"), IDS)
    assert (apart - logits_of(load_model("tiny"), IDS)).abs().max() > 0.1
    torch.testing.assert_close(logits_of(load_model(out), IDS), apart, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(transformers_logits(out), apart, atol=1e-4, rtol=1e-4)
    # As PEFT defines it, on the files alone: W + alpha / r B A.
    name = "model.layers.1.self_attn.k_proj"
    factors = load_file(adapted / "m1" / "model" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    base = load_file(find_folder("tiny") / "model.safetensors")[f"{name}.weight"].float()
    merged = load_file(out / "model.safetensors")[f"{name}.weight"].float()
    torch.testing.assert_close(merged, base + 6.0 / 3 * b @ a)
    assert not (out / "adapter_config.json").exists()
    assert "added to the weights of its base" in (out / "README.md").read_text()
    export("model", adapted, "--out", tmp_path / "as base", "--merge")
    assert read(tmp_path / "as base" / "config.json")["dtype"] == "float16"


def test_the_best_model_is_asked_by_its_score(made, export, tmp_path, complaint):
    run = tmp_path / "run"
    run.symlink_to(made)
    summary = read(made / "summary.json")
    scores = [model["eval"]["score"] for model in summary["models"]]
    export("model", run, "--best", "--out", tmp_path / "out")
    best = scores.index(max(scores)) + 1
    assert weights_hash(tmp_path / "out") == weights_hash(made / f"m{best}" / "model")
    said = complaint("model", run / "m1", "--best", "--out", tmp_path / "b")
    assert "--best: found with" in said and "wanted the folder of a whole run" in said


def test_what_a_word_means(made):
    folder = str(made / "m1" / "model")
    for word in (made / "m1", made / "m1" / "model"):
        found = find_model(str(word))
        assert (found.folder_or_name, found.number, label(found)) == (folder, 1, "tiny-run-m1")
    assert label(find_model(str(made))) == "tiny-run-m2"
    assert find_model("Qwen/Qwen3-8B").folder_or_name == "Qwen/Qwen3-8B"
    assert label(find_model("tiny")) == "tiny" and label(find_model("Qwen/Qwen3-8B")) == "Qwen3-8B"


def test_load_model_of_a_run(made):
    assert load_model(made / "m2").source == str(made / "m2" / "model")
    with pytest.raises(ModelError, match=r"a whole run, wanted one of its models: .*/m1, .*/m2$"):
        load_model(made)


def test_mistakes_are_one_line_and_leave_nothing(made, adapted, complaint, tmp_path):
    out = tmp_path / "out"
    assert "no such folder, wanted the folder of a run" in complaint(
        "model", "nowhere", "--out", out
    )
    assert "a folder that is no run" in complaint("model", tmp_path, "--out", out)
    assert "did you mean " + str(made) in complaint("model", str(made)[:-1], "--out", out)
    assert f"did you mean {made}/m2?" in complaint("model", made / "M2", "--out", out)
    said = complaint("model", made / "m3", "--out", out)
    assert "found no such model, wanted one that the run has" in said and "/m2" in said
    assert "--merge: found with" in complaint("model", made, "--out", out, "--merge")
    assert "wanted --merge beside" in complaint("model", adapted, "--out", out, "--dtype", "fp32")
    assert "no model with a held-out score" in complaint("model", adapted, "--best", "--out", out)
    assert "--dtype: found 'int3'" in complaint("model", made, "--out", out, "--dtype", "int3")
    assert "--out: not given" in complaint("model", made)
    assert "is there already" in complaint("model", made, "--out", tmp_path / "..")
    assert "found 'again' behind" in complaint("model", made, "again", "--out", out)
    assert "--outt: no such option; did you mean --out?" in complaint("model", made, "--outt", "x")
    assert "modle: nothing that can be exported; did you mean model?" in complaint("modle")
    assert not out.exists()


def test_a_run_without_a_model_yet(made, complaint, tmp_path):
    (tmp_path / "config.json").write_text((made / "config.json").read_text())
    (tmp_path / "m1" / "model.tmp").mkdir(parents=True)
    said = complaint("model", tmp_path, "--out", tmp_path / "out")
    assert "a run without a finished model" in said


def test_torn_or_lost_weights_are_not_handed_on(made, complaint, export, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(made, run)
    weights = run / "m2" / "model" / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    said = complaint("model", run, "--out", out)
    assert "m2/model/model.safetensors: is truncated" in said and "restore it" in said
    weights.unlink()
    assert "wanted weights in model.safetensors" in complaint("model", run, "--out", out)
    shutil.rmtree(run / "m2" / "model")
    said = complaint("model", run, "--out", out)
    assert "m2/model: is gone, wanted the last model of the run" in said and f"{run}/m1" in said
    assert not out.exists()
    export("model", run / "m1", "--out", out)
