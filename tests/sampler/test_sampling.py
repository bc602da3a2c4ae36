"""The sampling kernel: its distribution, its twin, its noise."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from srlm_fast.kernels.native import native
from srlm_fast.sampler.noise import hash_tokens, noise_key, noise_uniform
from srlm_fast.sampler.sampling import sample, sample_reference

from .helpers import ISAS, isa_level

DRAWS = 60_000


def plan_of(count, history=(), banned=(), **options):
    """A plan of `count` draws from row 0, each with its own counter."""
    defaults = {
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    settings = defaults | options
    dtypes = {name: np.int32 if name == "top_k" else np.float32 for name in defaults}
    return SimpleNamespace(
        sample_rows=np.zeros(count, np.int64),
        noise_keys=np.full(count, noise_key(5, hash_tokens(0, [1, 2, 3]), 0), np.uint64),
        sample_positions=np.arange(count),
        history=np.tile(np.array(history, np.int32), count),
        history_starts=np.arange(count + 1, dtype=np.int32) * len(history),
        banned=np.tile(np.array(banned, np.int32), count),
        mask_rows=np.full(count, -1, np.int32),
        forced=np.full(count, -1, np.int32),
        banned_starts=np.arange(count + 1, dtype=np.int32) * len(banned),
        **{name: np.full(count, settings[name], dtypes[name]) for name in defaults},
    )


def truth(logits, history=(), banned=(), **options):
    """The distribution by the definition, token by token, in float64 and plain Python."""
    z = logits.double().tolist()
    penalty = options.get("repetition_penalty", 1.0)
    for i in set(history):
        z[i] = z[i] / penalty if z[i] > 0 else z[i] * penalty
    for i in banned:
        z[i] = -np.inf
    top = max(z)
    p = np.exp([(x - top) / options.get("temperature", 1.0) for x in z])
    ranking = sorted(range(len(p)), key=lambda i: (-p[i], i))
    ranking = ranking[: options.get("top_k", 0) or len(p)]
    mass, kept, total = 0.0, [], sum(p[i] for i in ranking)
    for i in ranking:
        if mass < options.get("top_p", 1.0) * total:
            kept.append(i)
        mass += p[i]
    kept = [i for i in kept if p[i] >= options.get("min_p", 0.0) * max(p)]
    out = np.zeros(len(p))
    out[kept] = p[kept]
    return out / out.sum()


OPTIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7, "history": [*range(0, 24, 2)] * 2},
    {"repetition_penalty": 0.6, "history": [1, 4]},
    {"banned": [2, 7]},
    {"temperature": 0.7, "top_k": 12, "top_p": 0.8, "min_p": 0.05, "banned": [1]},
    {"temperature": 1.3, "top_p": 0.95, "repetition_penalty": 1.2, "history": list(range(15))},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["random", "equal", "peaked"])
def test_frequencies_are_the_distribution(options, kind):
    """Chi-square over 60,000 draws; the seed is fixed, so this either always passes or never."""
    generator = torch.Generator().manual_seed(4)
    logits = (
        torch.randn(27, generator=generator) * {"random": 1.5, "equal": 0.0, "peaked": 12}[kind]
    )
    wanted = truth(logits, **options)
    tokens, logprobs = sample(logits[None], plan_of(DRAWS, **options))
    counts = np.bincount(tokens, minlength=27)
    assert counts[wanted == 0].sum() == 0
    often = wanted * DRAWS >= 5
    observed = np.append(counts[often], counts[~often].sum())
    expected = np.append(wanted[often], wanted[~often].sum()) * DRAWS
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    if len(observed) > 1:
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4
    raw = logits.double().log_softmax(0)[tokens.astype(int)]
    np.testing.assert_allclose(logprobs, raw, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocab", [24, 27, 600])
def test_kernel_equals_reference(options, vocab):
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    plan = plan_of(250, **options)
    tokens, logprobs = sample(logits, plan)
    wanted, wanted_logprobs = sample_reference(logits, plan)
    assert (tokens != wanted).sum() == 0
    np.testing.assert_allclose(logprobs, wanted_logprobs, atol=5e-6, rtol=2e-6)


def test_greedy_takes_the_lowest_of_the_largest():
    logits = torch.tensor([[0.0, 3.0, 1.0, 3.0], [-5.0, -torch.inf, -4.0, -4.0]])
    plan = plan_of(2, temperature=0.0)
    plan.sample_rows[:] = [0, 1]
    for form in (sample, sample_reference):
        assert form(logits, plan)[0].tolist() == [1, 2]


def test_top_k_of_one_is_greedy():
    logits = torch.randn(64, 333, generator=torch.Generator().manual_seed(0))
    greedy, one = plan_of(64, temperature=0.0), plan_of(64, top_k=1)
    greedy.sample_rows[:] = one.sample_rows[:] = np.arange(64)
    assert np.array_equal(sample(logits, greedy)[0], sample(logits, one)[0])


def test_the_token_that_crosses_p_is_kept():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert set(sample(logits, plan_of(2000, top_p=0.6))[0].tolist()) == {0, 1}
    assert set(sample(logits, plan_of(2000, top_p=0.45))[0].tolist()) == {0}
    assert set(sample(logits, plan_of(2000, top_p=0.85))[0].tolist()) == {0, 1, 2}


def test_ties_at_the_cut_go_by_id():
    logits = torch.zeros(1, 40)
    assert set(sample(logits, plan_of(4000, top_k=3))[0].tolist()) == {0, 1, 2}
    assert set(sample(logits, plan_of(4000, top_p=0.09))[0].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_numbers_give_nan(bad):
    logits = torch.zeros(1, 30)
    logits[0, 17] = bad
    for form in (sample, sample_reference):
        assert np.isnan(form(logits, plan_of(3))[1]).all()


def test_extreme_logits():
    logits = torch.full((1, 50), -100.0)
    logits[0, 31] = 100.0
    tokens, logprobs = sample(logits, plan_of(50))
    assert set(tokens.tolist()) == {31}
    assert np.abs(logprobs).max() == 0
    logits = torch.full((1, 50), -torch.inf)
    logits[0, [4, 9]] = 2.0
    tokens, logprobs = sample(logits, plan_of(500, top_p=0.99))
    assert set(tokens.tolist()) == {4, 9}
    np.testing.assert_allclose(logprobs, np.log(0.5), rtol=1e-6)


def test_log_probabilities_of_a_large_vocabulary_are_exact():
    logits = torch.randn(4, 128_256, generator=torch.Generator().manual_seed(1)) * 2
    plan = plan_of(4, temperature=0.7, top_p=0.9)
    plan.sample_rows[:] = np.arange(4)
    tokens, logprobs = sample(logits, plan)
    wanted = logits.double().log_softmax(1)[torch.arange(4), torch.from_numpy(tokens).long()]
    np.testing.assert_allclose(logprobs, wanted, atol=1e-6, rtol=1e-6)


def mask_words(rows, vocab):
    """Lists of allowed tokens -> [M, ceil(V / 32)] int32."""
    words = torch.zeros(len(rows), -(-vocab // 32), dtype=torch.int64)
    for m, allowed in enumerate(rows):
        for token in allowed:
            words[m, token // 32] |= 1 << (token % 32)
    return torch.where(words < 2**31, words, words - 2**32).int()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocab", [24, 27, 600])
def test_masked_kernel_equals_reference(options, vocab):
    draw = torch.Generator().manual_seed(vocab)
    logits = torch.randn(2, vocab, generator=draw) * 3
    allowed = [torch.randperm(vocab, generator=draw)[: vocab // 2].tolist() for _ in range(3)]
    masks = mask_words([*allowed, [vocab - 1], range(vocab)], vocab)
    plan = plan_of(300, **options)
    plan.sample_rows[:] = np.arange(300) % 2
    plan.mask_rows = (np.arange(300) % 6 - 1).astype(np.int32)
    tokens, logprobs = sample(logits, plan, masks)
    wanted, wanted_logprobs = sample_reference(logits, plan, masks)
    assert np.array_equal(tokens, wanted)
    np.testing.assert_allclose(logprobs, wanted_logprobs, atol=5e-6, rtol=2e-6)
    for m, ids in enumerate(allowed):
        of = plan.mask_rows == m
        assert set(tokens[of & ~np.isnan(logprobs)].tolist()) <= set(ids)
    raw = logits.double().log_softmax(1)[plan.sample_rows, tokens.astype(int)].numpy()
    found = ~np.isnan(logprobs)
    np.testing.assert_allclose(logprobs[found], raw[found], atol=2e-6, rtol=2e-6)


def test_greedy_within_a_mask():
    logits = torch.tensor([[5.0, 1.0, 3.0, 3.0]])
    plan = plan_of(2, temperature=0.0)
    plan.mask_rows = np.array([0, -1], np.int32)
    for form in (sample, sample_reference):
        assert form(logits, plan, mask_words([[1, 2, 3]], 4))[0].tolist() == [2, 0]


def test_nothing_left_gives_nan():
    plan = plan_of(3, banned=[1, 2])
    plan.mask_rows = np.array([0, 1, -1], np.int32)
    masks = mask_words([[1, 2], []], 40)
    for form in (sample, sample_reference):
        assert np.isnan(form(torch.zeros(1, 40), plan, masks)[1]).tolist() == [True, True, False]


def test_masks_of_the_wrong_shape_are_named():
    plan = plan_of(1)
    with pytest.raises(ValueError, match="masks: torch.int32"):
        sample(torch.zeros(1, 40), plan, torch.zeros(1, 1, dtype=torch.int32))
    plan.mask_rows = np.array([1], np.int32)
    with pytest.raises(ValueError, match="mask_rows: 1"):
        sample(torch.zeros(1, 40), plan, torch.zeros(1, 2, dtype=torch.int32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [0.0, 0.3, 2.5, 20.0])
def test_pruning_keeps_what_top_p_keeps(isa, scale):
    """Flat to peaked rows of a real vocabulary, at every level of the instruction set."""
    logits = torch.randn(40, 32_003, generator=torch.Generator().manual_seed(2)) * scale
    for options in ({"top_p": 0.9}, {"top_p": 0.37, "temperature": 0.7}, {"top_p": 0.99995}):
        plan = plan_of(40, **options)
        plan.sample_rows[:] = np.arange(40)
        with isa_level(isa):
            tokens, logprobs = sample(logits, plan)
        wanted, wanted_logprobs = sample_reference(logits, plan)
        assert np.array_equal(tokens, wanted)
        np.testing.assert_allclose(logprobs, wanted_logprobs, atol=5e-6, rtol=2e-6)


def test_noise_is_the_same_in_both_languages_and_uniform():
    draws = np.random.default_rng(0)
    for seed, prompt, sample_index, position in draws.integers(0, 2**62, (200, 4)).tolist():
        key = noise_key(seed, prompt, sample_index)
        assert key == native().noise_key(seed, prompt, sample_index)
        assert noise_uniform(key, position) == native().noise_uniform(key, position)
    # Neighbouring seeds, samples and positions: a collision or a pattern would show here.
    values = [
        noise_uniform(noise_key(seed, 77, index), position)
        for seed in range(20)
        for index in range(10)
        for position in range(100)
    ]
    assert len(set(values)) == len(values)
    assert stats.kstest(values, "uniform").pvalue > 1e-3
