"""Values under both names, by hand."""

from __future__ import annotations

import json

from srlm_fast.model.portable import (
    generation_config,
    make_portable,
    portable_config,
    portable_tokenizer,
)


def test_dtype_and_rope_under_both_names():
    made = portable_config(
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}, "dtype": "x"}
    )
    assert made["torch_dtype"] == made["dtype"] == "x" and made["rope_theta"] == 5e5
    assert made["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    plain = portable_config({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})
    assert plain["rope_theta"] == 1e6 and plain["rope_scaling"] is None and "dtype" not in plain
    old = {"torch_dtype": "float16", "rope_theta": 1e4, "rope_scaling": {"type": "linear"}}
    assert portable_config(old) == old | {"dtype": "float16"}


def test_a_tokenizer_under_its_older_name():
    given = {"tokenizer_class": "TokenizersBackend", "is_local": True, "eos_token": "</s>"}
    made = portable_tokenizer(given | {"extra_special_tokens": ["<a>"]})
    assert made == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "additional_special_tokens": ["<a>"],
    }
    named = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": {"image": "<i>"}}
    assert portable_tokenizer(named) == named


def test_a_folder_without_a_generation_config_gets_one(tmp_path):
    assert generation_config({"eos_token_id": [1, 2], "bos_token_id": None}) == {
        "eos_token_id": [1, 2]
    }
    (tmp_path / "config.json").write_text('{"eos_token_id": 7, "dtype": "bfloat16"}')
    make_portable(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"eos_token_id": 7}
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.9}')
    make_portable(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"top_p": 0.9}
