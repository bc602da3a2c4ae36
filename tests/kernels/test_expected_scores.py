"""The distribution over the scores: against fp64 and eager, by hand, in odd shapes; refusals."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from srlm_fast.judge import compile_pattern
from srlm_fast.kernels import (
    expected_scores,
    expected_scores_reference,
    jit,
    score_distribution,
    score_distribution_reference,
)
from srlm_fast.kernels.expected_scores import MAX_COLUMNS, VOCAB_CHUNK
from tests.judge.tokenizers_for_tests import byte_level
from tests.kernels import head_cases
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded, surrounded
from tests.kernels.three_way import assert_no_worse

# The package has a function of the same name.
expected_scores_file = import_module("srlm_fast.kernels.expected_scores")
IDS = {0: (3,), 1: (4, 11), 2: (5,), 3: (6, 12, 13), 4: (7,), 5: (8, 40)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FIELDS = ("probs", "expected", "variance", "entropy", "mass")


def vanishing(t, d, v, generator):
    """The scores together hold about e^-60 of the probability."""
    hidden, head = head_cases.random(t, d, v, generator)
    head[:, 0], hidden[:, 0] = 0.0, 60.0
    head[44, 0] = 1.0
    return hidden, head


KINDS = (
    head_cases.random,
    head_cases.peaked,
    head_cases.hundreds,
    head_cases.equal,
    head_cases.zipf,
    vanishing,
)


def make(kind, rows, depth, vocab, dtype, device="cpu"):
    hidden, head, *_ = head_cases.make(kind, rows, depth, vocab, dtype)
    if kind is head_cases.peaked:  # p -> 1 on one score, and on one of another's two spellings
        hidden[0], hidden[-1] = head[6], head[40]
    return hidden.to(device), head.to(device)


def assert_three_way(found, hidden, head, ids=IDS):
    """The floor grows with the logits: a step of fp32 at 600 is 6e-5 nats, of every sum anew."""
    floor = 2e-5 + 2**-22 * float((hidden.double() @ head.double().T).abs().max())
    truth = score_distribution_reference(hidden.double(), head.double(), ids)
    eager = score_distribution_reference(hidden, head, ids)
    for name in FIELDS:
        ours = getattr(found, name)
        assert ours.dtype == torch.float32
        assert_no_worse(ours, getattr(eager, name), getattr(truth, name), floor, name)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_against_fp64(kernel_device, kind, dtype):
    hidden, head = make(kind, 19, 70, 131, dtype, kernel_device)
    with guarded():
        found = score_distribution(surrounded(hidden), surrounded(head), IDS)
    assert_three_way(found, hidden, head)


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64], ids=str)
@pytest.mark.parametrize("vocab", [41, VOCAB_CHUNK, 2 * VOCAB_CHUNK + 5])
def test_against_fp64_in_torch(vocab, dtype):
    hidden, head = make(head_cases.random, 3, 16, vocab, dtype)
    assert_three_way(score_distribution(hidden, head, IDS), hidden, head)


@pytest.mark.parametrize("rows, depth", [(1, 64), (16, 16), (33, 5)])
def test_sizes(kernel_device, rows, depth):
    hidden, head = make(head_cases.random, rows, depth, 64, torch.float32, kernel_device)
    assert_three_way(score_distribution(hidden, head, IDS), hidden, head)


def test_by_hand(kernel_device):
    """Weights 1, 2, 1 for the scores 0, 1, 2 and 4 for another token."""
    head = torch.tensor([1.0, 2.0, 1.0, 4.0], device=kernel_device).log()[:, None]
    found = score_distribution(torch.ones(1, 1, device=kernel_device), head, [[0], [1], [2]])
    assert found.values.tolist() == [0, 1, 2]
    assert found.probs[0].tolist() == pytest.approx([0.25, 0.5, 0.25])
    assert found.expected.item() == pytest.approx(1.0)
    assert found.variance.item() == pytest.approx(0.5)
    assert found.entropy.item() == pytest.approx(1.5 * math.log(2))
    assert found.mass.item() == pytest.approx(0.5)


def test_several_spellings_add_up(kernel_device):
    head = torch.zeros(4, 1, device=kernel_device)
    score, mass = expected_scores(torch.ones(1, 1, device=kernel_device), head, [[0], [1, 2, 3]])
    assert score.item() == pytest.approx(0.75)
    assert mass.item() == pytest.approx(1.0)


def test_scores_that_nobody_would_write(kernel_device):
    """1e30 times less likely than another token: the mean over them alone is still right."""
    head = torch.full((50, 1), -200.0, device=kernel_device)
    head[40] = 0.0
    head[3], head[8] = -70.0, -70.0
    ids, one = {score: group[:1] for score, group in IDS.items()}, head.new_ones(1, 1)
    score, mass = expected_scores(one, head, ids)
    assert score.item() == pytest.approx(2.5, abs=1e-5)
    assert 0 < mass.item() < 1e-29
    assert expected_scores_reference(one, head, ids)[0].item() == pytest.approx(2.5)


def test_without_the_mass_no_other_row_of_the_head_is_read(kernel_device):
    hidden, head = make(head_cases.random, 5, 32, 64, torch.float32, kernel_device)
    known = score_distribution(hidden, head, IDS)
    others = torch.ones(64, dtype=torch.bool, device=kernel_device)
    others[[i for group in IDS.values() for i in group]] = False
    head[others] = math.nan
    with guarded():
        found = score_distribution(hidden, head, IDS, mass=False)
    assert found.mass is None
    for name in FIELDS[:-1]:
        assert torch.equal(getattr(found, name), getattr(known, name)), name


def test_a_row_does_not_depend_on_its_company(kernel_device):
    hidden, head = make(head_cases.random, 40, 48, 64, torch.bfloat16, kernel_device)
    found = score_distribution(hidden, head, IDS, mass=False)
    for i in (0, 15, 16, 39):
        alone = score_distribution(hidden[i : i + 1], head, IDS, mass=False)
        torch.testing.assert_close(alone.probs[0], found.probs[i], rtol=1e-6, atol=0)


def test_strides_do_not_matter(kernel_device):
    hidden, head = make(head_cases.random, 8, 32, 64, torch.float32, kernel_device)
    nan = torch.full_like(hidden, math.nan)
    wanted = score_distribution(hidden, head, IDS, mass=False).probs
    for strided in (torch.stack([hidden, nan], -1)[..., 0], hidden.T.contiguous().T):
        assert not strided.is_contiguous()
        for other in (head, head.T.contiguous().T):
            found = score_distribution(strided, other, IDS, mass=False).probs
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("mass", [True, False])
def test_no_rows(kernel_device, mass):
    hidden, head = make(head_cases.random, 2, 16, 64, torch.float32, kernel_device)
    found = score_distribution(hidden[:0], head, IDS, mass)
    assert found.probs.shape == (0, 6)
    assert found.expected.shape == found.variance.shape == found.entropy.shape == (0,)
    assert found.mass is None or found.mass.shape == (0,)


def test_more_scores_than_a_program_holds(kernel_device):
    hidden, head = make(head_cases.random, 2, 16, 600, torch.float32, kernel_device)
    ids = {score: (score,) for score in range(MAX_COLUMNS + 1)}
    assert_three_way(score_distribution(hidden, head, ids), hidden, head, ids)


class Counted:
    """A kernel whose launches are counted."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


def test_one_launch_and_ids_sent_once(kernel_device, monkeypatch):
    """The same scores again: nothing is copied to the device."""
    hidden, head = make(head_cases.random, 2, 16, 64, torch.float32, kernel_device)
    first = score_distribution(hidden, head, IDS, mass=False)
    kernel = Counted(expected_scores_file._scores_kernel)
    monkeypatch.setattr(expected_scores_file, "_scores_kernel", kernel)
    monkeypatch.setattr(torch, "tensor", None)
    again = score_distribution(hidden, head, IDS, mass=False)
    assert kernel.launches == 1
    assert torch.equal(again.expected, first.expected)


def test_weights_that_want_gradients_and_inference_mode():
    hidden, head = make(head_cases.random, 2, 16, 64, torch.float32)
    with torch.inference_mode():
        first = score_distribution(hidden, head, {2: (9,), 4: (10,)})
    found = score_distribution(hidden, head.requires_grad_(), {2: (9,), 4: (10,)})
    assert not found.expected.requires_grad
    assert torch.equal(found.expected, first.expected)


def test_ids_as_mapping_sequence_or_tensor_mean_the_same():
    hidden, head = make(head_cases.random, 4, 16, 64, torch.float32)
    single = [3, 4, 5, 6, 7, 8]
    sets = {score: {i} for score, i in enumerate(single)}
    forms = [single, torch.tensor(single), [[i] for i in single], sets]
    results = [expected_scores(hidden, head, form)[0] for form in forms]
    assert all(torch.equal(result, results[0]) for result in results)


def test_takes_the_ids_of_a_score_table():
    table = compile_pattern(byte_level())
    hidden, head = make(head_cases.random, 2, 16, len(table.token_bytes), torch.float32)
    score, _ = expected_scores(hidden, head, table.score_ids)
    assert ((score > 0) & (score < 5)).all()


REFUSED = {
    "hidden: shape [16], wanted [B, D]": {"hidden": torch.zeros(16)},
    "hidden: int64, wanted": {"hidden": torch.zeros(2, 16, dtype=torch.int64)},
    "head: shape [64, 15], wanted [V, 16]": {"head": torch.zeros(64, 15)},
    "head: bfloat16, wanted float32": {"head": torch.zeros(64, 16).bfloat16()},
    "score_ids: no score, or one token id under two": {"score_ids": [[1], [1]]},
    "score_ids: no score": {"score_ids": []},
    "score_ids: no token id for the score 1": {"score_ids": [[1], []]},
    "score_ids: ids 1 to 64, wanted 0 to 63": {"score_ids": [[1], [64]]},
    "score_ids: ids -1 to 1": {"score_ids": [[1], [-1]]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    hidden, head = make(head_cases.random, 2, 16, 64, torch.float32)
    given = {"hidden": hidden, "head": head, "score_ids": IDS}
    with pytest.raises(ValueError) as error:
        expected_scores(**(given | REFUSED[message]))
    assert str(error.value).startswith(message)


def test_a_dtensor_is_refused_by_name():
    with dtensors() as wrapped, pytest.raises(ValueError, match="hidden: a DTensor"):
        expected_scores(wrapped(torch.zeros(2, 4)), torch.zeros(8, 4), [[1], [2]])


@pytest.mark.gpu
def test_the_host_does_not_wait():
    hidden, head = make(head_cases.random, 20, 64, 131, torch.bfloat16, "cuda")
    score_distribution(hidden, head, IDS)
    assert jit.runs_triton(hidden)
    torch.cuda.set_sync_debug_mode("error")
    try:
        score_distribution(hidden, head, IDS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
