"""The expected score: against full logits, on peaked and flat heads, in odd shapes."""

import pytest
import torch

from srlm_fast.judge import compile_pattern
from srlm_fast.kernels import expected_scores, expected_scores_reference
from srlm_fast.kernels.judge_score import VOCAB_CHUNK

IDS = {0: (3,), 1: (4, 11), 2: (5,), 3: (6, 12, 13), 4: (7,), 5: (8, 40)}


def make(num_rows: int, vocab: int, scale: float = 1.0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(num_rows + vocab)
    hidden = torch.randn(num_rows, 16, generator=draw, dtype=torch.float64) * scale
    return hidden.to(dtype), torch.randn(vocab, 16, generator=draw, dtype=torch.float64).to(dtype)


def truth(hidden, head):
    """Full logits in fp64."""
    probs = torch.softmax(hidden.double() @ head.double().T, -1)
    weights = torch.stack([probs[:, list(ids)].sum(-1) for ids in IDS.values()], -1)
    mass = weights.sum(-1)
    return (weights * torch.arange(6)).sum(-1) / mass, mass


@pytest.mark.parametrize("num_rows", [1, 3, 17])
@pytest.mark.parametrize("vocab", [41, VOCAB_CHUNK, 2 * VOCAB_CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_against_full_logits(num_rows, vocab, dtype):
    hidden, head = make(num_rows, vocab, dtype=dtype)
    want_score, want_mass = truth(hidden, head)
    for op in (expected_scores, expected_scores_reference):
        score, mass = op(hidden, head, IDS)
        assert score.dtype == mass.dtype == torch.float32
        torch.testing.assert_close(score.double(), want_score, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mass.double(), want_mass, rtol=2e-5, atol=1e-8)


def test_hand_worked():
    """Weights 1, 2, 1 for the scores 0, 1, 2 and 4 for another token: mean 1, mass 1/2."""
    head = torch.tensor([1.0, 2.0, 1.0, 4.0]).log()[:, None]
    score, mass = expected_scores(torch.ones(1, 1), head, [[0], [1], [2]])
    assert score.item() == pytest.approx(1.0)
    assert mass.item() == pytest.approx(0.5)


def test_several_spellings_add_up():
    head = torch.tensor([1.0, 1.0, 1.0, 1.0]).log()[:, None]
    score, mass = expected_scores(torch.ones(1, 1), head, [[0], [1, 2, 3]])
    assert score.item() == pytest.approx(0.75)
    assert mass.item() == pytest.approx(1.0)


def test_peaked_and_vanishing_mass():
    """Score tokens 1e30 times less likely than another: the mean over them alone is still right."""
    head = torch.full((50, 1), -200.0)
    head[40] = 0.0
    head[3], head[8] = -70.0, -70.0
    ids = {score: group[:1] for score, group in IDS.items()}
    score, mass = expected_scores(torch.ones(1, 1), head, ids)
    assert score.item() == pytest.approx(2.5, abs=1e-5)
    assert 0 < mass.item() < 1e-29
    assert expected_scores_reference(torch.ones(1, 1), head, ids)[0].item() == pytest.approx(2.5)


@pytest.mark.parametrize("scale", [0.0, 100.0])
def test_flat_and_extreme_logits_stay_finite(scale):
    hidden, head = make(5, 64, scale)
    score, mass = expected_scores(hidden, head, IDS)
    assert score.isfinite().all() and (score >= 0).all() and (score <= 5).all()
    assert (mass >= 0).all() and (mass <= 1).all()


def test_rows_do_not_mix_and_may_be_strided():
    hidden, head = make(8, 64)
    strided = torch.stack([hidden, hidden + 1], -1)[..., 0]
    assert not strided.is_contiguous()
    score, _ = expected_scores(strided, head, IDS)
    one, _ = expected_scores(hidden[3:4], head, IDS)
    torch.testing.assert_close(score[3:4], one)


def test_no_rows():
    hidden, head = make(0, 64)
    score, mass = expected_scores(hidden, head, IDS)
    assert score.shape == mass.shape == (0,)


def test_ids_as_mapping_sequence_or_tensor_mean_the_same():
    hidden, head = make(4, 64)
    single = [3, 4, 5, 6, 7, 8]
    sets = {score: {i} for score, i in enumerate(single)}
    forms = [single, torch.tensor(single), [[i] for i in single], sets]
    results = [expected_scores(hidden, head, form)[0] for form in forms]
    assert all(torch.equal(result, results[0]) for result in results)


def test_takes_the_ids_of_a_score_table():
    from tests.judge.tokenizers_for_tests import byte_level

    table = compile_pattern(byte_level())
    hidden, head = make(2, len(table.token_bytes))
    score, _ = expected_scores(hidden, head, table.score_ids)
    assert ((score > 0) & (score < 5)).all()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"hidden": torch.zeros(16)}, "hidden"),
        ({"hidden": torch.zeros(2, 16, dtype=torch.int64)}, "hidden"),
        ({"head": torch.zeros(64, 15)}, "head"),
        ({"score_ids": [[1], [1]]}, "score_ids"),
        ({"score_ids": [[1], []]}, "score_ids"),
        ({"score_ids": []}, "score_ids"),
        ({"score_ids": [[1], [64]]}, "score_ids"),
        ({"score_ids": [[1], [-1]]}, "score_ids"),
    ],
)
def test_contract(change, name):
    hidden, head = make(2, 64)
    with pytest.raises(ValueError, match=name):
        expected_scores(**({"hidden": hidden, "head": head, "score_ids": IDS} | change))
