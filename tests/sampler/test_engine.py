"""The sampler as a whole, against transformers, against a dense forward, and against itself."""

import math

import pytest
import torch

from srlm_fast.kernels import native
from srlm_fast.sampler import Request, Sampler, SamplingParams, packed
from srlm_fast.sampler.paged import cache_dtype

from .helpers import CONFIGS, dense_logits, outcome, random_prompts, sampled, small_model

DRAW = SamplingParams(
    n=3, temperature=0.9, top_p=0.95, max_tokens=24, ignore_eos=True, logprobs=True, seed=11
)
LENGTHS = [1, 5, 16, 17, 33, 40, 64, 90]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request):
    return small_model(dtype=request.param)


@pytest.fixture(scope="module")
def prompts(model):
    return random_prompts(model, LENGTHS)


@pytest.fixture(scope="module")
def alone(model, prompts):
    """Every prompt by itself, in a fresh sampler: what all other ways must reproduce bit for
    bit.
    """
    return [sampled(model, [prompt], DRAW)[0] for prompt in prompts]


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch):
    """With the extension, and without it: the Python twin, torch attention, torch sampling."""
    if request.param == "torch":
        monkeypatch.setattr(native, "_load", lambda: ImportError("taken away by the test"))
        for module in ("engine", "packed", "paged", "sampling"):
            monkeypatch.setattr(f"srlm_fast.sampler.{module}.available", lambda: False)
    return request.param


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_transformers(name, path, tmp_path):
    from transformers import AutoModelForCausalLM

    model = small_model(name)
    model.save(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    greedy = SamplingParams(temperature=0, max_tokens=20)
    for prompt in random_prompts(model, [3, 30, 47], seed=5):
        tokens = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=list(model.eos_token_ids) or None,
        )
        ours = Sampler(model).generate([prompt], greedy)[0].samples[0]
        assert ours.token_ids == tokens[0, len(prompt) :].tolist()


def in_fp32(model):
    """The same weights, exactly."""
    exact = small_model()
    exact.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    return exact


def tolerance(model, fp32, bf16):
    """Of a comparison with a dense forward, which rounds other things to bfloat16 than ours."""
    return fp32 if model.dtype == torch.float32 else bf16


def test_native_and_torch_paths_draw_the_same(prompts, monkeypatch):
    model = small_model()
    alone = sampled(model, prompts, DRAW)
    for module in ("engine", "packed", "paged", "sampling"):
        monkeypatch.setattr(f"srlm_fast.sampler.{module}.available", lambda: False)
    monkeypatch.setattr(native, "_load", lambda: ImportError("taken away by the test"))
    for ours, theirs in zip(sampled(model, prompts, DRAW), alone, strict=True):
        for (tokens, logprobs, _), (other_tokens, other_logprobs, _) in zip(
            ours, theirs, strict=True
        ):
            assert tokens == other_tokens
            assert logprobs == pytest.approx(other_logprobs, abs=2e-5)


def test_logprobs_are_those_of_a_dense_forward(model, prompts, path):
    out = Sampler(model).generate(prompts, DRAW)
    each, exact = tolerance(model, 5e-5, 0.3), in_fp32(model)
    for generation in out:
        for sample in generation.samples:
            ids = generation.prompt_token_ids + sample.token_ids
            dense = dense_logits(exact, ids[:-1])[len(generation.prompt_token_ids) - 1 :]
            wanted = dense.log_softmax(-1)[torch.arange(len(sample.token_ids)), sample.token_ids]
            assert sample.logprobs == pytest.approx(wanted.tolist(), abs=each)
            assert sample.logprob == pytest.approx(sum(sample.logprobs), abs=1e-4)


# ------------------------------------------------------------------------------ batch invariance


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"page_tokens": 64},
        {"max_batch_tokens": 7},
        {"max_batch_tokens": 50, "page_tokens": 32},
        {"max_sequences": 2},
    ],
    ids=str,
)
def test_company_does_not_matter(model, prompts, alone, options):
    assert sampled(model, prompts, DRAW, **options) == alone


def test_order_does_not_matter(model, prompts, alone):
    assert sampled(model, prompts[::-1], DRAW) == alone[::-1]


def test_preemption_does_not_matter(model, prompts, alone):
    page = 3 * 2 * 16 * (12 + 16) * cache_dtype("cpu", model.dtype).itemsize
    sampler = Sampler(model, kv_bytes=9 * page, max_batch_tokens=40)
    assert outcome(sampler.generate(prompts, DRAW)) == alone
    assert sampler._scheduler.preemptions > 0
    assert sampler._scheduler.num_free_pages == sampler.num_pages == 9


def test_prefix_hit_does_not_matter(model, prompts, alone):
    sampler = Sampler(model)
    assert outcome(sampler.generate(prompts, DRAW)) == alone
    before = sampler._scheduler.cached_tokens
    assert outcome(sampler.generate(prompts, DRAW)) == alone
    full = sum((n - 1) // 16 * 16 for n in LENGTHS)
    assert sampler._scheduler.cached_tokens - before == full


def test_number_of_samples_does_not_matter(model, prompts, alone):
    one = SamplingParams(**{**DRAW.__dict__, "n": 1})
    five = SamplingParams(**{**DRAW.__dict__, "n": 5})
    assert sampled(model, prompts, one) == [samples[:1] for samples in alone]
    assert [samples[:3] for samples in sampled(model, prompts, five)] == alone


def test_number_of_threads_does_not_matter(model, prompts):
    short = SamplingParams(**{**DRAW.__dict__, "max_tokens": 4})
    threads = torch.get_num_threads()
    outcomes = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outcomes.append(sampled(model, prompts, short))
    finally:
        torch.set_num_threads(threads)
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_library_matmuls_are_invariant_in_row_blocks(model, prompts, monkeypatch):
    """Models too large to be packed run on torch's matmul, in whole blocks of rows."""
    monkeypatch.setattr(packed, "max_packed_bytes", lambda: 0)
    short = SamplingParams(**{**DRAW.__dict__, "max_tokens": 6})
    alone = [sampled(model, [prompt], short)[0] for prompt in prompts]
    assert sampled(model, prompts, short) == alone
    assert sampled(model, prompts[::-1], short, max_batch_tokens=13) == alone[::-1]


def test_requests_that_join_do_not_matter(model, prompts, alone):
    found = {}

    def on_finished(generation):
        found[generation.tag] = outcome([generation])[0]
        follower = generation.tag + 4
        return [Request(prompts[follower], DRAW, follower)] if follower < len(prompts) else None

    Sampler(model).run([Request(p, DRAW, i) for i, p in enumerate(prompts[:4])], on_finished)
    assert [found[i] for i in range(len(prompts))] == alone


def test_seed_sample_and_prompt_make_different_noise(model, prompts):
    base = SamplingParams(n=2, max_tokens=12, ignore_eos=True)
    texts = [
        tuple(sample.token_ids)
        for seed in range(4)
        for sample in Sampler(model)
        .generate([prompts[4]], SamplingParams(**{**base.__dict__, "seed": seed}))[0]
        .samples
    ]
    assert len(set(texts)) == 8  # sample 1 of seed 0 is not sample 0 of seed 1


# --------------------------------------------------------------------------------------- sharing


def test_equal_prompts_of_one_batch_are_computed_once(model):
    prompt = random_prompts(model, [50])[0]
    tails = random_prompts(model, [6] * 10, seed=3)
    sampler = Sampler(model)
    together = outcome(sampler.generate([prompt + tail for tail in tails], DRAW))
    # 48 of the 50 shared tokens fill three pages, written by the first request in the same step.
    assert sampler._scheduler.prefill_tokens == 56 + 9 * 8
    assert sampler._scheduler.cached_tokens == 9 * 48
    assert together == [sampled(model, [prompt + tail], DRAW)[0] for tail in tails]


def test_a_shared_prompt_is_prefilled_once(model, prompts):
    sampler = Sampler(model)
    sampler.generate([prompts[-1]], SamplingParams(n=8, max_tokens=4, ignore_eos=True))
    assert sampler._scheduler.prefill_tokens == 90


@pytest.mark.parametrize("length", [16, 32, 48])
def test_a_fully_cached_prompt_still_samples(model, length):
    prompt = random_prompts(model, [length], seed=8)[0]
    sampler = Sampler(model)
    first = outcome(sampler.generate([prompt], DRAW))
    assert outcome(sampler.generate([prompt], DRAW)) == first
    assert sampler._scheduler.cached_tokens == length - 16


def test_cached_pages_do_not_survive_new_weights(prompts):
    model = small_model(seed=1)
    sampler = Sampler(model)
    before = outcome(sampler.generate(prompts, DRAW))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    model.touch()
    after = outcome(sampler.generate(prompts, DRAW))
    assert after == sampled(model, prompts, DRAW)
    assert after != before


def test_release_gives_memory_back_and_changes_nothing(model, prompts, alone):
    sampler = Sampler(model)
    sampler.generate(prompts, DRAW)
    sampler.release()
    assert sampler._cache is None and sampler._executor is None
    assert outcome(sampler.generate(prompts, DRAW)) == alone


# ------------------------------------------------------------------------------------- endings


def test_eos_stop_ids_and_lengths(model):
    prompt = random_prompts(model, [20])[0]
    free = SamplingParams(n=16, max_tokens=60, ignore_eos=True, seed=2)
    samples = Sampler(model).generate([prompt], free)[0].samples
    assert {s.finish_reason for s in samples} == {"length"}
    eos = Sampler(model).generate([prompt], SamplingParams(n=16, max_tokens=60, seed=2))[0].samples
    assert any(s.finish_reason == "stop" for s in eos)
    for whole, cut in zip(samples, eos, strict=True):
        end = whole.token_ids.index(2) + 1 if 2 in whole.token_ids else 60
        assert cut.token_ids == whole.token_ids[:end]
        assert cut.finish_reason == ("stop" if 2 in whole.token_ids else "length")
    stop = SamplingParams(n=16, max_tokens=60, ignore_eos=True, seed=2, stop_token_ids=[7, 50])
    for whole, cut in zip(samples, Sampler(model).generate([prompt], stop)[0].samples, strict=True):
        at = min((whole.token_ids.index(t) for t in (7, 50) if t in whole.token_ids), default=59)
        assert cut.token_ids == whole.token_ids[: at + 1]


def test_min_tokens_keeps_endings_away(model):
    params = SamplingParams(n=64, max_tokens=20, min_tokens=12, temperature=1.5)
    samples = Sampler(model).generate([random_prompts(model, [9])[0]], params)[0].samples
    assert all(2 not in s.token_ids[:12] for s in samples)
    assert any(12 < len(s.token_ids) < 20 for s in samples)


def test_samples_end_at_the_last_position(model):
    prompt = random_prompts(model, [150])[0]
    sample = Sampler(model).generate([prompt], SamplingParams(max_tokens=50, ignore_eos=True))[0]
    assert len(sample.samples[0].token_ids) == 10
    assert sample.samples[0].finish_reason == "length"


def test_repetition_penalty_acts_on_prompt_and_sample(model):
    prompt = random_prompts(model, [12])[0]
    params = SamplingParams(temperature=0, repetition_penalty=1e6, max_tokens=60, ignore_eos=True)
    tokens = Sampler(model).generate([prompt], params)[0].samples[0].token_ids
    assert len(set(tokens)) == 60 and not set(tokens) & set(prompt)


# ------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "prompts[1]: 0 tokens"),
        ([1, 97], "prompts[1]: token 97, wanted ids from 0 to 96"),
        ([1, -1], "prompts[1]: token -1"),
        ([1.5], "prompts[1]: float64"),
        ([1] * 161, "prompts[1]: 161 tokens, wanted at most the model's 160"),
        ("text", "no tokenizer"),
    ],
)
def test_unusable_prompts_are_named(model, prompt, said):
    with pytest.raises(ValueError, match=said.replace("[", r"\[").replace("]", r"\]")):
        Sampler(model).generate([[1, 2], prompt], SamplingParams(max_tokens=2))


def test_a_request_beyond_the_pool_is_refused(model, path):
    page = 3 * 2 * 16 * (12 + 16) * cache_dtype("cpu", model.dtype).itemsize
    sampler = Sampler(model, kv_bytes=4 * page)
    with pytest.raises(ValueError, match=r"prompts\[0\]: 60 tokens and max_tokens 9 need 5 pages"):
        sampler.generate([[3] * 60], SamplingParams(max_tokens=9, ignore_eos=True))
    kept = sampler.generate([[3] * 60], SamplingParams(max_tokens=5, ignore_eos=True))
    assert len(kept[0].samples[0].token_ids) == 5


def test_bad_arguments_are_named(model):
    for options, said in [
        ({"page_tokens": 24}, "page_tokens: 24"),
        ({"kv_bytes": 10}, "kv_bytes: 10"),
        ({"max_batch_tokens": 0}, "max_batch_tokens"),
        ({"deterministic": False}, "deterministic: False"),
        ({"kv_dtype": "fp8"}, "kv_dtype"),
        ({"kv_dtype": "int3"}, "kv_dtype"),
        ({"attention": "flash"}, "attention: 'flash'"),
    ]:
        with pytest.raises(ValueError, match=said):
            Sampler(model, **options)
    with pytest.raises(ValueError, match="params: 2 of them"):
        Sampler(model).generate([[1]], [SamplingParams()] * 2)
    with pytest.raises(ValueError, match="stop: strings"):
        Sampler(model).generate([[1]], SamplingParams(stop="x"))


def test_nan_weights_are_not_sampled_from(path):
    model = small_model(seed=3)
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(FloatingPointError):
        Sampler(model).generate([[1, 2, 3]])


def test_a_broken_callback_leaves_a_usable_sampler(model, prompts, alone):
    sampler = Sampler(model)

    def fail(generation):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        sampler.run([Request(p, DRAW) for p in prompts], fail)
    assert sampler._scheduler.num_free_pages == sampler.num_pages
    assert outcome(sampler.generate(prompts, DRAW)) == alone


def test_a_running_sampler_cannot_be_started_again(model):
    sampler = Sampler(model)
    with pytest.raises(RuntimeError, match="already running"):
        sampler.run([Request([1], DRAW)], lambda g: sampler.generate([[1]]))


# ---------------------------------------------------------------------------------------- rest


def test_hidden_at_is_the_last_row(model, prompts, path):
    from srlm_fast.model import PackedContext

    rows = Sampler(model).hidden_at(prompts + prompts[:2])
    for prompt, row in zip(prompts + prompts[:2], rows, strict=True):
        context = PackedContext([len(prompt)], model.config.windows)
        with torch.no_grad():
            dense = model(torch.tensor(prompt), torch.arange(len(prompt)), context)
        worst = tolerance(model, 2e-5, 0.3)
        torch.testing.assert_close(row, dense[-1], atol=worst, rtol=worst)


def test_progress_counts_to_the_end(model, prompts):
    seen = []
    Sampler(model).run([Request(p, DRAW) for p in prompts], progress=seen.append)
    last = seen[-1]
    assert (last.requests_done, last.requests_total) == (len(prompts), len(prompts))
    assert last.generated_tokens == len(prompts) * 3 * 24
    assert last.prefill_tokens + last.cached_tokens == sum(LENGTHS)


def test_nothing_at_all(model):
    assert Sampler(model).generate([]) == []
    assert Sampler(model).hidden_at([]).shape == (0, 48)


def test_bfloat16_on_a_cpu(prompts):
    from srlm_fast.model import random_model

    model = random_model(CONFIGS["llama"], std=0.25, dtype=torch.bfloat16)
    short = SamplingParams(**{**DRAW.__dict__, "max_tokens": 5})
    alone = [sampled(model, [prompt], short)[0] for prompt in prompts]
    assert sampled(model, prompts, short) == alone


# ------------------------------------------------------------------------------ reading own rows


def test_scoring_gives_the_bits_of_sampling(model, prompts, path):
    drawn = Sampler(model).generate(prompts, DRAW)
    rows = [(g.prompt_token_ids, s) for g in drawn for s in g.samples]
    for options in ({}, {"max_batch_tokens": 9}, {"page_tokens": 32}):
        found = Sampler(model, **options).score(
            [p for p, _ in rows], [s.token_ids for _, s in rows]
        )
        if path == "native":
            assert found == [s.logprobs for _, s in rows]
        for ours, (_, sample) in zip(found, rows, strict=True):
            assert ours == pytest.approx(sample.logprobs, abs=5e-5)


def test_scoring_after_a_prefix_hit_and_a_preemption(model, prompts):
    drawn = Sampler(model).generate(prompts, DRAW)
    rows = [(g.prompt_token_ids, s) for g in drawn for s in g.samples]
    page = 3 * 2 * 16 * (12 + 16) * model.dtype.itemsize
    sampler = Sampler(model, kv_bytes=12 * page, max_batch_tokens=40)
    for _ in range(2):
        found = sampler.score([p for p, _ in rows], [s.token_ids for _, s in rows])
        assert found == [s.logprobs for _, s in rows]
    assert sampler.statistics.cached_tokens > 0
    assert sampler._scheduler.num_free_pages == 12


def test_sampled_logprobs_are_the_reference_logprobs(model, prompts):
    """What DPO takes as the reference is what the sampler gave, to the rounding of fp32."""
    from srlm_fast.kernels import linear_logprob
    from srlm_fast.model import PackedContext

    for generation in Sampler(model).generate(prompts, DRAW):
        for sample in generation.samples:
            ids = generation.prompt_token_ids + sample.token_ids
            context = PackedContext([len(ids) - 1], model.config.windows)
            with torch.no_grad():
                hidden = model(torch.tensor(ids[:-1]), context.positions, context)
            rows = hidden[len(generation.prompt_token_ids) - 1 :]
            given = linear_logprob(rows, model.head, torch.tensor(sample.token_ids))
            wide = rows.double() @ model.head.double().T
            truth = wide.log_softmax(-1).gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
            worst = tolerance(model, 3e-5, 0.4)
            assert sample.logprobs == pytest.approx(given.tolist(), abs=worst)
            assert sample.logprobs == pytest.approx(truth.tolist(), abs=worst)


def test_scores_of_nothing(model):
    assert Sampler(model).score([], []) == []
    assert Sampler(model).score([[1, 2], [3]], [[], [4]])[0] == []


def test_many_scored_rows_go_under_the_head_in_pieces(model, prompts, monkeypatch):
    whole = Sampler(model).score(prompts[4:], prompts[:4])
    monkeypatch.setattr("srlm_fast.sampler.executor.LOGIT_ROWS", 7)
    assert Sampler(model).score(prompts[4:], prompts[:4]) == whole


def test_hidden_at_a_position(model, prompts, path):
    sampler = Sampler(model)
    places = [len(p) // 2 for p in prompts]
    cut = sampler.hidden_at([p[: at + 1] for p, at in zip(prompts, places, strict=True)])
    found = sampler.hidden_at(prompts, places)
    torch.testing.assert_close(found, cut, atol=2e-5, rtol=2e-5)
    assert path == "torch" or torch.equal(found, cut)


def test_unusable_reads_are_named(model):
    sampler = Sampler(model)
    for call, said in [
        (lambda: sampler.score([[1]], []), "continuations: 0 of them, wanted 1"),
        (lambda: sampler.score([[1]], [[97]]), r"continuations\[0\]: token 97"),
        (lambda: sampler.score([[]], [[1]]), r"prompts\[0\]: 0 tokens"),
        (lambda: sampler.score([[1] * 100], [[1] * 62]), r"prompts\[0\]: 162 tokens"),
        (lambda: sampler.hidden_at([[1, 2]], [0, 1]), "positions: 2 of them, wanted 1"),
        (lambda: sampler.hidden_at([[1, 2]], []), "positions: 0 of them, wanted 1"),
        (lambda: sampler.hidden_at([[1, 2]], [2]), r"positions\[0\]: 2, wanted 0 to 1"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()


# --------------------------------------------------------------------------------- allowed tokens


def test_only_allowed_tokens_are_drawn(model, prompts, path):
    params = SamplingParams(
        n=2, max_tokens=12, ignore_eos=True, logprobs=True, allowed_token_ids=(5, 96, 31, 32)
    )
    free = SamplingParams(n=2, max_tokens=12, ignore_eos=True)
    every = [params if i % 2 else free for i in range(len(prompts))]
    for i, generation in enumerate(Sampler(model).generate(prompts, every)):
        tokens = {t for s in generation.samples for t in s.token_ids}
        assert (tokens <= {5, 96, 31, 32}) == bool(i % 2)
        for sample in generation.samples if i % 2 else ():
            ids = generation.prompt_token_ids + sample.token_ids
            dense = dense_logits(model, ids[:-1])[len(generation.prompt_token_ids) - 1 :]
            wanted = dense.log_softmax(-1)[torch.arange(12), sample.token_ids]
            assert sample.logprobs == pytest.approx(
                wanted.tolist(), abs=tolerance(model, 5e-5, 0.3)
            )


def test_an_allowed_token_beyond_the_vocabulary_is_named(model):
    with pytest.raises(ValueError, match="allowed_token_ids: 97, wanted ids below 97"):
        Sampler(model).generate([[1]], SamplingParams(allowed_token_ids=(97,)))


def test_statistics_count_everything(model, prompts):
    sampler = Sampler(model)
    sampler.generate(prompts, DRAW)
    found = sampler.statistics
    assert found.generated_tokens == len(prompts) * 3 * 24
    assert found.prefill_tokens + found.cached_tokens == sum(LENGTHS)
    assert found.steps >= 24 and found.preemptions == 0 and found.device_seconds == 0
    assert found.host_seconds > 0 and found.wait_seconds > 0


def test_progress_tells_rates(model, prompts):
    seen = []
    Sampler(model).run([Request(p, DRAW) for p in [*prompts, *prompts]], progress=seen.append)
    last = seen[-1]
    assert last.decode_rate == pytest.approx(last.generated_tokens / last.seconds)
    assert last.prefill_rate == pytest.approx(last.prefill_tokens / last.seconds)
    assert 0 < last.cache_hit_share < 1


def test_masks_of_earlier_runs_do_not_pile_up(model):
    sampler = Sampler(model)
    for first in range(70):
        params = SamplingParams(max_tokens=1, allowed_token_ids=(first, 96))
        tokens = sampler.generate([[1, 2]], params)[0].samples[0].token_ids
        assert tokens[0] in (first, 96)
    assert len(sampler._masks.tensor) == 128 and len(sampler._masks._rows) < 66


def test_what_sampling_gave_can_be_scored(model):
    """Also the token at the last position, which never enters the model."""
    prompt = random_prompts(model, [160])[0]
    sample = Sampler(model).generate([prompt], SamplingParams(logprobs=True, seed=3))[0].samples[0]
    assert Sampler(model).score([prompt], [sample.token_ids]) == [sample.logprobs]


def test_weights_changed_in_place_are_seen_without_touch(prompts):
    model = small_model(seed=6)
    sampler = Sampler(model)
    before = outcome(sampler.generate(prompts, DRAW))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    assert outcome(sampler.generate(prompts, DRAW)) == sampled(model, prompts, DRAW) != before


def test_a_follower_that_cannot_run_does_not_lose_the_others(model, prompts):
    found = []

    def on_finished(generation):
        found.append(generation.tag)
        return [Request([1] * 161, DRAW)] if generation.tag == 0 else None

    with pytest.raises(ValueError, match="161 tokens"):
        Sampler(model).run([Request(p, DRAW, i) for i, p in enumerate(prompts)], on_finished)
    assert sorted(found) == list(range(len(prompts)))


def test_allowed_tokens_that_all_end_a_sample_are_refused(model):
    params = SamplingParams(allowed_token_ids=(2, 7), stop_token_ids=(7,), min_tokens=1)
    with pytest.raises(ValueError, match="all end samples, and min_tokens is 1"):
        Sampler(model).generate([[1]], params)
