"""A model with fp8 matrices: close to bf16's, samples, lets gradients through, is not saved."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from srlm_fast.kernels.quantise_rows import quantise_rows
from srlm_fast.model import ModelConfig, ModelError, PackedContext, random_model
from srlm_fast.model.fp8 import (
    LINEARS,
    Fp8Linear,
    quantise_linears,
    random_fp8_model,
    scaled_matmul_reference,
)
from srlm_fast.sampler import Sampler, SamplingParams, graph_executor
from srlm_fast.sampler.packed import can_pack
from tests.kernels.dtensors import dtensors

CONFIG = ModelConfig("llama", 131, 64, 96, 2, 4, 2, 16, max_position_embeddings=160)
BIASED = CONFIG.replace(family="qwen2", qkv_bias=True)
PROMPTS = [[3, 5, 7, 11, 13], list(range(20, 60)), [9]]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=True)


def bf16_model(config=CONFIG, device="cpu"):
    return random_model(config, device=device, dtype=torch.bfloat16)


@torch.inference_mode()
def logprobs(model, ids):
    """[T, V] fp32."""
    context = PackedContext([len(ids)], model.config.windows)
    tokens = torch.tensor(ids, device=model.device)
    hidden = model(tokens, torch.arange(len(ids), device=model.device), context)
    return model.logits(hidden).float().log_softmax(-1)


def dequantised(model):
    """The same weights in a plain model, in fp32."""
    plain = random_model(model.config, device=model.device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            stored = parameters[name].float()
            scale = parameters.get(name.removesuffix("weight") + "scale")
            weight.copy_(stored if scale is None else stored * scale)
    return plain


@pytest.mark.parametrize("config", [CONFIG, BIASED], ids=["llama", "qwen2"])
def test_weights_are_within_their_bounds(config):
    model = bf16_model(config)
    before, quantised = copy.deepcopy(model), quantise_linears(model)
    assert quantised is model and model.weights_version == before.weights_version + 1
    wide = dequantised(model)
    for layer, old, new in zip(model.layers, before.layers, wide.layers, strict=True):
        for name in LINEARS:
            ours, weight = getattr(layer, name), getattr(old, name).weight.float()
            assert isinstance(ours, Fp8Linear) and ours.weight.dtype == torch.float8_e4m3fn
            error = (getattr(new, name).weight - weight).abs()
            bound = torch.maximum(weight.abs() * 2**-4, ours.scale * 2**-10)
            assert (error <= 1.00001 * bound).all()
            if getattr(old, name).bias is not None:
                assert torch.equal(ours.bias, getattr(old, name).bias)
    assert torch.equal(model.head, before.head) and model.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [CONFIG, BIASED], ids=["llama", "qwen2"])
def test_logits_are_close_to_those_of_bf16(config):
    model = bf16_model(config)
    wanted = logprobs(model, PROMPTS[1])
    quantise_linears(model)
    found, spread = logprobs(model, PROMPTS[1]), wanted.std()
    # Roundings to fp8 are off by 2.6 %, root mean square; each layer's matmuls add theirs.
    error = (found - wanted).square().mean().sqrt()
    assert 0.02 * spread < error < 0.2 * spread
    # Here the weights have no part in it.
    exact = logprobs(dequantised(model), PROMPTS[1])
    assert 0.02 * spread < (found - exact).square().mean().sqrt() < error


def test_greedy_sampling_on_a_cpu():
    model = quantise_linears(bf16_model())
    assert not can_pack(model)
    generations = Sampler(model).generate(PROMPTS, GREEDY)
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        (sample,) = generation.samples
        assert len(sample.token_ids) == 6
        dense = logprobs(model, [*prompt, *sample.token_ids])[len(prompt) - 1 : -1]
        chosen = dense.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
        # One bit of bf16 apart may be one of fp8 in the next matmul.
        assert (dense.amax(1) - chosen).max() < 0.2
        assert torch.tensor(sample.logprobs) == pytest.approx(chosen, abs=0.2)
    (alone,) = Sampler(model).generate(PROMPTS[:1], GREEDY)
    assert alone.samples == generations[0].samples


def test_random_model_is_that_of_its_seed():
    first, again, other = (random_fp8_model(BIASED, "cpu", seed) for seed in (0, 0, 1))
    assert not first.training and first.dtype == torch.bfloat16
    for name, weight in first.named_parameters():
        assert torch.equal(weight.float(), dict(again.named_parameters())[name].float())
    assert not torch.equal(first.layers[0].o.weight.float(), other.layers[0].o.weight.float())
    assert not first.layers[0].qkv.bias.any() and first.norm.weight.eq(1).all()
    wide = dequantised(first)
    for weight in (wide.layers[1].down.weight, wide.head, wide.embed.weight):
        assert float(weight.detach().std()) == pytest.approx(CONFIG.hidden_size**-0.5, rel=0.05)
    assert logprobs(first, PROMPTS[0]).isfinite().all()
    built = {name: (w.dtype, w.shape) for name, w in first.named_parameters()}
    quantised = quantise_linears(bf16_model(BIASED))
    assert built == {name: (w.dtype, w.shape) for name, w in quantised.named_parameters()}


def refused(model):
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError) as error:
        quantise_linears(model)
    assert [type(module) for module in model.modules()] == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_refusals():
    assert refused(random_model(CONFIG, dtype=torch.float16)) == (
        "model: float16 on cpu, wanted bfloat16, or float32 on a CPU"
    )
    assert refused(bf16_model().to("meta")).startswith("model: bfloat16 on meta, wanted")
    again = "model: layers.0.qkv is Fp8Linear, wanted Linear"
    assert refused(quantise_linears(bf16_model())) == again
    model = bf16_model()
    with dtensors() as wrapped:
        linear = model.layers[1].down
        linear.weight = torch.nn.Parameter(wrapped(linear.weight.detach()))
        assert refused(model) == "model: weights split over ranks, wanted plain tensors"


def test_it_is_neither_saved_nor_trained(tmp_path):
    model = quantise_linears(bf16_model())
    with pytest.raises(ModelError, match="the weights are fp8, which is not saved"):
        model.save(tmp_path / "there")
    assert not (tmp_path / "there").exists() and not any(tmp_path.iterdir())
    assert not any(weight.requires_grad for weight in model.parameters())


def test_weights_are_read_into_it(tmp_path):
    bf16_model().save(tmp_path / "there")
    model = random_fp8_model(CONFIG, "cpu", seed=3)
    model.load_weights(tmp_path / "there")
    wanted = quantise_linears(bf16_model())
    for (name, ours), (_, theirs) in zip(
        model.named_parameters(), wanted.named_parameters(), strict=True
    ):
        assert torch.equal(ours.float(), theirs.float()), name


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(8192, 1024), (512, 4096), (40, 24)], ids=str)
@pytest.mark.parametrize("rows", [1, 17, 300])
def test_linear_on_a_gpu(sizes, rows):
    linear = Fp8Linear(*sizes, bias=True).to("cuda")
    draw = torch.Generator("cuda").manual_seed(0)
    linear.set_weight(torch.randn(*sizes[::-1], device="cuda", generator=draw) * 0.02)
    linear.bias.data = torch.randn(sizes[1], device="cuda", generator=draw).bfloat16()
    x = torch.randn(rows, sizes[0], device="cuda", generator=draw).bfloat16()
    x8, scale = quantise_rows(x)
    wanted = scaled_matmul_reference(x8, scale, linear.weight, linear.scale, torch.float32)
    found = linear(x).float()
    assert found.isfinite().all()
    # Two roundings to bf16, and sums that the tensor cores keep in 14 bits and cut off.
    wanted = wanted + linear.bias.float()
    error = found - wanted
    assert error.abs().max() < 2**-4 * wanted.abs().max()
    assert error.square().mean().sqrt() < 2**-5 * wanted.square().mean().sqrt()


@pytest.mark.parametrize("deterministic", [False, True])
def test_sampling_on_triton_kernels(kernel_device, deterministic, monkeypatch):
    """On a GPU with captured graphs, elsewhere in the interpreter; keys and values are fp8 too."""
    on_gpu = kernel_device == "cuda"
    if not on_gpu:  # which has no other mode, and no library to be told
        if not deterministic:
            pytest.skip("needs a GPU")
        monkeypatch.setattr(graph_executor, "invariant_matmuls", lambda dtype: nullcontext())
    config = CONFIG.replace(hidden_size=256, intermediate_size=512, head_dim=64)
    model = random_fp8_model(config, kernel_device)
    options = {"kv_bytes": 2**24, "kv_dtype": "fp8", "page_tokens": 16}
    sampler = Sampler(model, **options, deterministic=deterministic)
    params = GREEDY if on_gpu else replace(GREEDY, max_tokens=2)
    generations = sampler.generate(PROMPTS, params)
    assert sampler._on_gpu and bool(sampler._executor.graphs) == on_gpu
    for prompt, generation in zip(PROMPTS, generations, strict=True):
        (sample,) = generation.samples
        dense = logprobs(model, [*prompt, *sample.token_ids])[len(prompt) - 1 : -1].cpu()
        chosen = dense.gather(1, torch.tensor(sample.token_ids)[:, None])[:, 0]
        error = torch.tensor(sample.logprobs) - chosen
        assert error.abs().max() < 0.4 and (dense.amax(1) - chosen).max() < 0.5
