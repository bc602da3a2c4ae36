"""Requests for the hidden row of their last token, among requests that are sampled."""

import pytest
import torch

from srlm_fast.sampler import Request, Sampler, SamplingParams

from .helpers import outcome, random_prompts, small_model
from .test_engine import DRAW, alone, model, path, prompts  # noqa: F401 (fixtures)


def run(sampler, requests, follow=None):
    """The generations by tag."""
    done = {}

    def keep(generation):
        done[generation.tag] = generation
        return follow(generation) if follow else None

    sampler.run(requests, keep)
    return done


def assert_row(found, wanted, path):  # noqa: F811
    """Bit for bit with the extension; torch's own attention may round another way."""
    assert path == "torch" or torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=2e-5)


def test_rows_are_the_same_alone_and_in_company(model, prompts, alone):  # noqa: F811
    """Bit for bit, and the samples beside them do not notice."""
    wanted = [run(Sampler(model), [Request(p, hidden=True, tag=0)])[0].hidden for p in prompts]
    requests = []
    for i, prompt in enumerate(prompts):
        requests += [Request(prompt, DRAW, ("drawn", i)), Request(prompt, tag=i, hidden=True)]
    done = run(Sampler(model, max_batch_tokens=70), requests)
    assert [outcome([done["drawn", i]])[0] for i in range(len(prompts))] == alone
    for i, row in enumerate(wanted):
        found = done[i]
        assert found.samples == [] and found.prompt_token_ids == prompts[i]
        assert found.hidden.shape == (48,) and found.hidden.dtype == model.dtype
        assert torch.equal(found.hidden, row)
    assert all(done["drawn", i].hidden is None for i in range(len(prompts)))


def test_rows_are_those_of_hidden_at(model, prompts):  # noqa: F811
    done = run(Sampler(model), [Request(p, tag=i, hidden=True) for i, p in enumerate(prompts)])
    rows = Sampler(model).hidden_at(prompts)
    assert all(torch.equal(done[i].hidden, row) for i, row in enumerate(rows))


def test_a_follow_up_joins_the_batch_and_finds_its_prefix(model, prompts, path):  # noqa: F811
    """Sampled first; what was written is then read. The pages of the prompt are there still."""
    short = SamplingParams(max_tokens=9, ignore_eos=True, seed=3)

    def follow(generation):
        if isinstance(generation.tag, str):
            return None
        ids = generation.prompt_token_ids + generation.samples[0].token_ids
        return [Request(ids, tag=f"read {generation.tag}", hidden=True)]

    sampler = Sampler(model)
    done = run(sampler, [Request(p, short, i) for i, p in enumerate(prompts)], follow)
    whole = sum(len(done[f"read {i}"].prompt_token_ids) // 16 * 16 for i in range(len(prompts)))
    assert sampler.statistics.cached_tokens > 0.8 * whole
    for i in range(len(prompts)):
        read = done[f"read {i}"]
        fresh = Sampler(model).hidden_at([read.prompt_token_ids])[0]
        assert_row(read.hidden, fresh, path)


def test_rows_survive_scarce_pages(model, prompts, path):  # noqa: F811
    wanted = Sampler(model).hidden_at(prompts)
    sampler = Sampler(model, kv_bytes=16 * Sampler(model)._page_bytes(), max_batch_tokens=32)
    more = SamplingParams(n=2, max_tokens=40, ignore_eos=True)
    requests = [Request(p, more, ("drawn", i)) for i, p in enumerate(prompts)]
    requests += [Request(p, tag=i, hidden=True) for i, p in enumerate(prompts)]
    done = run(sampler, requests)
    assert sampler.statistics.preemptions > 0
    for i, row in enumerate(wanted):
        assert_row(done[i].hidden, row, path)


@pytest.mark.parametrize("given", [{}, {"params": DRAW, "hidden": True}])
def test_exactly_one_of_params_and_hidden(given):
    with pytest.raises(ValueError, match="params: .*wanted one of the two"):
        Request([1, 2], **given)


def test_refusals_name_the_request():
    sampler = Sampler(small_model())
    long = random_prompts(sampler.model, [161])[0]
    for ids, message in ((long, "161 tokens"), ([], "0 tokens"), ([97], "token 97")):
        requests = [Request([1], DRAW), Request(ids, hidden=True)]
        with pytest.raises(ValueError, match=rf"prompts\[1\]: {message}"):
            sampler.run(requests)


def test_rows_on_a_gpu_or_in_the_interpreter(kernel_device):
    model = small_model().to(kernel_device)  # noqa: F811
    prompts = random_prompts(model, [12, 21])  # noqa: F811
    short = SamplingParams(max_tokens=3, ignore_eos=True)
    requests = [Request(prompts[0], short, "drawn")]
    requests += [Request(p, tag=i, hidden=True) for i, p in enumerate(prompts)]
    done = run(Sampler(model, kv_bytes=1 << 20), requests)
    wanted = Sampler(model, kv_bytes=1 << 20).hidden_at(prompts)
    for i, row in enumerate(wanted):
        torch.testing.assert_close(done[i].hidden, row, atol=5e-5, rtol=5e-5)
