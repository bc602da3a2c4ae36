"""The sampler on Triton kernels: on a GPU with captured graphs, elsewhere in the interpreter."""

import dataclasses

import pytest
import torch

from srlm_fast.kernels import jit
from srlm_fast.model import random_model
from srlm_fast.sampler import Sampler, SamplingParams
from srlm_fast.sampler.graph_executor import GraphExecutor

from .helpers import CONFIGS, outcome, random_prompts, small_model

HAS_GPU = torch.cuda.is_available()
DRAW = SamplingParams(
    n=2, temperature=0.9, top_p=0.95, max_tokens=3, ignore_eos=True, logprobs=True, seed=11
)
SMALL = {"page_tokens": 16, "kv_bytes": 2**20}


def on(device, model):
    """The same weights on the device of the kernels."""
    if device == "cpu":
        return model
    moved = random_model(model.config, device=device, dtype=model.dtype)
    moved.load_state_dict(model.state_dict())
    return moved


def plain(model, prompts, params):
    """What the CPU's own path gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "runs_triton", lambda x: x.is_cuda)
        return outcome(Sampler(model).generate(prompts, params))


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        for (tokens, logprobs, reason), (tokens_2, logprobs_2, reason_2) in zip(
            mine, other, strict=True
        ):
            assert (tokens, reason) == (tokens_2, reason_2)
            assert logprobs == pytest.approx(logprobs_2, abs=5e-5)


def sampler_on(device, model, **options):
    sampler = Sampler(on(device, model), **(SMALL | options))
    assert sampler._on_gpu
    return sampler


def shallow(name="llama", seed=0):
    """Of one layer: the interpreter takes its time."""
    model = small_model(name, seed)
    config = model.config.replace(num_layers=1, windows=model.config.windows[:1])
    cut = random_model(config)
    cut.load_state_dict(model.state_dict(), strict=False)
    return cut


@pytest.fixture(scope="module")
def model():
    return small_model() if HAS_GPU else shallow()


def test_samples_are_those_of_the_cpu(kernel_device, model):
    prompts = random_prompts(model, [1, 17, 33])
    sampler = sampler_on(kernel_device, model)
    assert_same(outcome(sampler.generate(prompts, DRAW)), plain(model, prompts, DRAW))
    assert isinstance(sampler._executor, GraphExecutor) and sampler._executor.ahead == 1
    assert sampler._scheduler.num_free_pages == sampler.num_pages
    again = outcome(sampler.generate(prompts, DRAW))  # with prefix hits
    assert_same(again, plain(model, prompts, DRAW))
    assert sampler.statistics.cached_tokens == 16 + 32


@pytest.mark.parametrize("name", ["mistral", "qwen3"] if not HAS_GPU else list(CONFIGS))
def test_greedy_in_every_family(kernel_device, name):
    model = small_model(name) if HAS_GPU else shallow(name)
    params = SamplingParams(temperature=0, max_tokens=2, logprobs=True)
    prompts = random_prompts(model, [30, 5])
    assert_same(
        outcome(sampler_on(kernel_device, model).generate(prompts, params)),
        plain(model, prompts, params),
    )


def test_endings_are_found_one_step_late_and_nothing_is_kept_of_it(kernel_device, model):
    prompt = random_prompts(model, [9])
    free = dataclasses.replace(DRAW, n=3, max_tokens=5)
    whole = plain(model, prompt, free)[0]
    stop = dataclasses.replace(free, stop_token_ids=[whole[0][0][2], whole[1][0][0]])
    sampler = sampler_on(kernel_device, model)
    assert_same(outcome(sampler.generate(prompt, stop)), plain(model, prompt, stop))
    assert sampler._scheduler.num_free_pages == sampler.num_pages
    assert sampler._scheduler.num_in_flight == 0


def test_penalty_masks_and_min_tokens(kernel_device, model):
    prompts = random_prompts(model, [6, 7, 8])
    params = [
        dataclasses.replace(DRAW, repetition_penalty=1.4),
        dataclasses.replace(DRAW, allowed_token_ids=(3, 50, 96), top_k=2),
        dataclasses.replace(DRAW, n=3, min_tokens=3, ignore_eos=False, stop_token_ids=[4, 9, 30]),
    ]
    ours = outcome(sampler_on(kernel_device, model).generate(prompts, params))
    assert_same(ours, plain(model, prompts, params))


def test_pre_emption_and_chunks(kernel_device):
    model = shallow()
    prompts = random_prompts(model, [14, 15, 13])
    params = dataclasses.replace(DRAW, n=1, max_tokens=22)
    page = 2 * 2 * 16 * 12 * 4
    sampler = sampler_on(kernel_device, model, kv_bytes=6 * page, max_batch_tokens=24)
    assert_same(outcome(sampler.generate(prompts, params)), plain(model, prompts, params))
    assert sampler.statistics.preemptions > 0
    assert sampler._scheduler.num_free_pages == 6


def test_scores_and_hidden_rows(kernel_device, model):
    prompts = random_prompts(model, [12, 21])
    drawn = plain(model, prompts, DRAW)
    sampler = sampler_on(kernel_device, model)
    scores = sampler.score(prompts, [samples[1][0] for samples in drawn])
    for found, samples in zip(scores, drawn, strict=True):
        assert found == pytest.approx(samples[1][1], abs=5e-5)
    rows = sampler.hidden_at(prompts, [3, 20])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jit, "runs_triton", lambda x: x.is_cuda)
        truth = Sampler(model).hidden_at(prompts, [3, 20])
    torch.testing.assert_close(rows.cpu(), truth, atol=5e-5, rtol=5e-5)


def test_fp8_pages_are_close(kernel_device, model):
    prompts = random_prompts(model, [30])
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=True)
    sampler = sampler_on(kernel_device, model, kv_dtype="fp8")
    ours = sampler.generate(prompts, params)[0].samples[0]
    assert sampler._cache.keys.dtype == torch.float8_e4m3fn
    score = Sampler(on(kernel_device, model), **SMALL).score(prompts, [ours.token_ids])[0]
    assert ours.logprobs == pytest.approx(score, abs=0.3)


def test_new_weights_are_seen_at_once(kernel_device):
    model = on(kernel_device, shallow(seed=4))
    prompts = random_prompts(model, [9])
    sampler = Sampler(model, **SMALL)
    before = outcome(sampler.generate(prompts, DRAW))
    executor = sampler._executor
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.2)
    model.touch()
    after = outcome(sampler.generate(prompts, DRAW))
    assert sampler._executor is executor  # and its graphs: the tensors are the same
    assert after == outcome(Sampler(model, **SMALL).generate(prompts, DRAW)) != before


def test_nan_is_refused(kernel_device):
    model = on(kernel_device, shallow(seed=3))
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    sampler = Sampler(model, **SMALL)
    with pytest.raises(FloatingPointError):
        sampler.generate([[1, 2, 3]])
    assert sampler._scheduler.num_free_pages == sampler.num_pages


def test_one_request_may_have_more_samples_than_run_at_once(kernel_device, model):
    prompts = random_prompts(model, [3])
    params = dataclasses.replace(DRAW, n=12, max_tokens=2)
    sampler = sampler_on(kernel_device, model, max_sequences=4, max_batch_tokens=8)
    assert_same(outcome(sampler.generate(prompts, params)), plain(model, prompts, params))


@pytest.mark.gpu
def test_logprobs_are_not_rounded_to_16_bits():
    """They are the DPO reference: of the sampler's own hidden rows, in fp64."""
    model = random_model(CONFIGS["llama"], device="cuda", dtype=torch.bfloat16, std=0.5)
    prompts = random_prompts(model, [20, 33])
    sampler = Sampler(model, **SMALL)
    for generation in sampler.generate(prompts, DRAW):
        for sample in generation.samples:
            ids = generation.prompt_token_ids + sample.token_ids
            first, count = len(generation.prompt_token_ids) - 1, len(sample.token_ids)
            rows = sampler.hidden_at([ids] * count, range(first, first + count))
            logp = (rows.double() @ model.head.double().T).log_softmax(-1)
            wanted = logp[range(count), sample.token_ids].tolist()
            assert sample.logprobs == pytest.approx(wanted, abs=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_deterministic_mode_gives_the_same_bits_in_any_company(dtype):
    config = dataclasses.replace(
        CONFIGS["llama"], vocab_size=4096, hidden_size=1024, intermediate_size=2816,
        num_layers=4, num_heads=16, num_kv_heads=4, head_dim=64, max_position_embeddings=2048,
        windows=(None,) * 4,
    )  # fmt: skip
    model = random_model(config, device="cuda", dtype=dtype, std=0.05)
    prompts = random_prompts(model, [1, 40, 64, 65, 128, 300, 511, 700, 900], seed=2)
    params = dataclasses.replace(DRAW, n=3, max_tokens=150)
    options = {"deterministic": True, "kv_bytes": 2**28}
    alone = [outcome(Sampler(model, **options).generate([p], params))[0] for p in prompts]
    together = Sampler(model, **options)
    assert outcome(together.generate(prompts, params)) == alone
    assert outcome(together.generate(prompts[::-1], params)) == alone[::-1]  # prefix hits
    cut = Sampler(model, **options, max_batch_tokens=100)
    assert outcome(cut.generate(prompts, params)) == alone
    page = 2 * 4 * 4 * 64 * 64 * dtype.itemsize
    tight = Sampler(model, deterministic=True, kv_bytes=17 * page, page_tokens=64)
    assert outcome(tight.generate(prompts, params)) == alone
    assert tight.statistics.preemptions > 0
    rows = [(p, s) for p, samples in zip(prompts, alone, strict=True) for s in samples]
    scores = together.score([p for p, _ in rows], [s[0] for _, s in rows])
    assert scores == [s[1] for _, s in rows]
