"""What training refuses before its first step, in one line."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.model import ModelError
from srlm_fast.train import DpoConfig, SftConfig, SftRow, TokenPair, train_dpo, train_sft
from tests.train.helpers import make_pairs, small_model

PAIRS = make_pairs(2)
NAN = torch.tensor([0.0, float("nan")])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"config": SftConfig()}, "config: SftConfig, wanted DpoConfig"),
        ({"ref_logps": (NAN, NAN)}, "not finite"),
        ({"held_out_ref_logps": (NAN[:1], NAN[:1])}, "without held_out"),
    ],
)
def test_dpo(given, message):
    with pytest.raises(ValueError, match=message):
        train_dpo(small_model(), PAIRS, **({"config": DpoConfig()} | given))


def test_ids_that_are_no_whole_numbers_and_sequences_beyond_the_positions():
    model = small_model()
    with pytest.raises(ValueError, match="whole numbers"):
        train_dpo(model, [TokenPair([1.5], [1], [2])])
    longest = model.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"at most the model's {longest}"):
        train_sft(model, [SftRow([1], [2] * (longest + 1))])


def test_a_model_is_not_saved_over_a_file(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ModelError, match="is a file"):
        small_model().save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
