"""A decoder over several ranks gives what one rank gives."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from srlm_fast.dist import tensor_parallel
from srlm_fast.model.save import save_model

from . import cases
from .processes import Ranks

TRAINED = ["llama", "biases", "mistral", "qwen2", "qwen3"]


@pytest.fixture(scope="module")
def on_two(two_ranks: Ranks) -> list[dict[str, Any]]:
    return two_ranks(cases.tensor_answers, 2, list(cases.SPLIT))


@pytest.fixture(scope="module")
def on_four(four_ranks: Ranks) -> list[dict[str, Any]]:
    return four_ranks(cases.tensor_answers, 4, list(cases.SPLIT_4))


@pytest.fixture(params=list(cases.EVERY))
def ranks(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """A model's name, and what each rank has found."""
    name = request.param
    found = request.getfixturevalue("on_two" if name in cases.SPLIT else "on_four")
    return name, [one[name] for one in found]


def assert_same_samples(ours: Any, theirs: Any, nats: float = 2e-5) -> None:
    """Equal tokens and reasons, close log-probabilities."""
    for mine, other in zip(ours, theirs, strict=True):
        assert [(ids, why) for ids, _, why in mine] == [(ids, why) for ids, _, why in other]
        for (_, got, _), (_, want, _) in zip(mine, other, strict=True):
            torch.testing.assert_close(torch.tensor(got), torch.tensor(want), atol=nats, rtol=0)


def test_samples_are_those_of_one_rank(ranks):
    name, found = ranks
    assert_same_samples(found[0]["answers"], cases.answers(cases.model_of(name)))


def test_every_rank_has_the_same_samples(ranks):
    _, found = ranks
    assert len({cases.checksum(one["answers"]) for one in found}) == 1


def test_a_packed_forward_is_that_of_one_rank(ranks):
    name, found = ranks
    with torch.no_grad():
        whole = cases.logits(cases.model_of(name))
    for one in found:
        torch.testing.assert_close(one["logits"], whole, atol=5e-5, rtol=0)
        assert torch.equal(one["logits"], found[0]["logits"])


def test_each_rank_holds_its_share(ranks):
    name, found = ranks
    model, count = cases.model_of(name), len(found)
    config = model.config
    own = max(1, config.num_kv_heads // count)
    whole = sum(p.nbytes for p in model.parameters())
    for one in found:
        assert one["heads"] == config.num_heads // count
        assert one["pages"][1] == pytest.approx(one["pages"][0] * config.num_kv_heads / own, abs=8)
        assert one["plain"] == [] and not one["can_pack"]
    copied = max(1, count // config.num_kv_heads)
    assert sum(one["bytes"] for one in found) < whole * (1.1 if copied == 1 else 1.4)


def test_a_small_pool_pre_empts_and_caches_alike_on_every_rank(two_ranks: Ranks):
    first, second = two_ranks(cases.small_pool, "llama")
    assert first == second
    assert first["pages"] == 7 and first["preemptions"] > 0 and first["cached"] > 0
    whole = cases.answers(cases.model_of("llama"))
    assert_same_samples(first["first"], whole)
    assert_same_samples(first["again"], whole)


def test_gradients_are_those_of_one_rank(two_ranks: Ranks):
    found = two_ranks(cases.gradients, TRAINED)
    for name in TRAINED:
        model = cases.model_of(name)
        cases.loss(model).backward()
        for key, weight in model.named_parameters():
            for one in found:
                torch.testing.assert_close(
                    one[name][key], weight.grad, atol=1e-5, rtol=1e-4, msg=f"{name} {key}"
                )


def test_the_norm_of_the_gradients_counts_each_weight_once(two_ranks: Ranks):
    model = cases.model_of("qwen3")
    cases.loss(model).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    assert two_ranks(cases.clipped_norm, "qwen3") == pytest.approx([norm, norm], rel=1e-5)


def test_training_with_copied_heads_is_refused(two_ranks: Ranks):
    for message in two_ranks(cases.trains_copies):
        assert message.startswith("num_key_value_heads: fewer than the ranks")


def test_a_mesh_that_does_not_fit_is_refused():
    model = cases.model_of("llama")
    flat = SimpleNamespace(ndim=1, device_type="cuda")
    with pytest.raises(ValueError, match="^model: on cpu, wanted it on the mesh's cuda$"):
        tensor_parallel(model, flat)
    with pytest.raises(ValueError, match="^mesh: 2 dimensions, wanted one: mesh"):
        tensor_parallel(model, SimpleNamespace(ndim=2, device_type="cpu"))


def test_a_model_that_does_not_divide_is_left_alone(two_ranks: Ranks):
    for found in two_ranks(cases.refuses_five_heads):
        assert found["refused"] == "num_attention_heads: 5, wanted a multiple of 2 ranks"
        assert found["whole"]


def test_files_are_those_of_one_rank(two_ranks: Ranks, tmp_path: Path):
    names = list(cases.SPLIT)
    for name in names:
        save_model(cases.model_of(name), tmp_path / f"{name} whole", max_shard_bytes=20_000)
    for found in two_ranks(cases.save_and_load, names, str(tmp_path)):
        assert len(found["files"]) == 2 * len(names)
        assert found["twice"] == "model: its weights are split already"
    for name in names:
        ours, theirs = tmp_path / name, tmp_path / f"{name} whole"
        files = sorted(path.name for path in theirs.iterdir())
        assert len(files) > 3 and files == sorted(path.name for path in ours.iterdir())
        for file in files:
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file


def test_sums_over_ranks_do_not_depend_on_their_company(four_ranks: Ranks):
    assert all(four_ranks(cases.sums_alone_and_together))


def test_company_does_not_matter_on_four_ranks(four_ranks: Ranks):
    assert all(four_ranks(cases.company))
