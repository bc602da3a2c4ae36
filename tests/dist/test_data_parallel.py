"""Prompts over several ranks give what one rank gives, bit for bit where a row's bits do not depend
on its neighbours.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from srlm_fast.sampler import Sampler, SamplingParams
from srlm_fast.sampler.data_parallel import share
from srlm_fast.sampler.packed import can_pack
from tests.sampler.helpers import outcome

from . import cases
from .processes import Ranks
from .test_tensor_parallel import assert_same_samples


def test_two_ranks_give_the_bits_of_one(two_ranks: Ranks):
    first, second = two_ranks(cases.data_answers, "llama")
    model = cases.model_of("llama")
    sampler, prompts = Sampler(model), cases.prompts_of(model)
    for found in (first, second):
        assert found["answers"] == cases.answers(model)
        assert found["tags"] == list(range(2 * len(prompts)))
        assert found["one"] == outcome(sampler.generate(prompts[:1], cases.SAMPLED))
        assert found["none"] == []
        assert found["too long"].startswith("prompts[2]: 500 tokens")
        assert found["count"] == "params: 2 of them, wanted one or 4"
    assert 0 < first["computed"] != second["computed"] > 0  # each did something else


@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "fsdp"])
def test_two_by_two_ranks_give_what_one_gives(four_ranks: Ranks, fsdp: bool, tmp_path: Path):
    found = four_ranks(cases.two_by_two, "qwen3", fsdp, str(tmp_path / "ours"))
    assert [one["data"] for one in found] == [0, 0, 1, 1]
    assert all(one["answers"] == found[0]["answers"] for one in found)
    model = cases.model_of("qwen3")
    assert_same_samples(found[0]["answers"], cases.answers(model))
    model.save(tmp_path / "theirs")
    ours, theirs = (tmp_path / name / "model.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_fsdp_samples_with_whole_weights_before_and_after_training(two_ranks: Ranks):
    rounds = 2
    found = two_ranks(cases.fsdp_rounds, "qwen2", rounds)
    assert found[0] == found[1]
    model = cases.model_of("qwen2")
    sampler = Sampler(model)
    for i, one in enumerate(found[0]):
        whole = cases.answers(model, sampler)
        if i == 0:
            assert one["answers"] == whole
        assert_same_samples(one["answers"], whole)
        assert one["packed"] == can_pack(model)
        assert one["loss"] == pytest.approx(cases.descend(model), rel=1e-5)
    assert found[0][0]["answers"] != found[0][1]["answers"]


def test_work_is_dealt_from_the_most_to_the_least():
    params = [SamplingParams(n=n, max_tokens=10) for n in (1, 4, 1, 2, 1)]
    prompts = [[1] * length for length in (9, 1, 7, 1, 8)]
    assert [share(prompts, params, 2, rank) for rank in range(2)] == [[0, 1, 2], [3, 4]]
    assert [share(prompts, params, 6, rank) for rank in (0, 1, 4, 5)] == [[1], [3], [2], []]
