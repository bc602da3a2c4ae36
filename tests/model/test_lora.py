"""Adapters: what they compute, on which bases, and how they lie on disk."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from srlm_fast.model import (
    Adapter,
    Int8Linear,
    LoraConfig,
    ModelConfig,
    ModelError,
    PackedContext,
    add_lora,
    has_lora,
    load_model,
    lora_parameters,
    quantise_linears,
    random_fp8_model,
    random_model,
    read_config,
    remove_lora,
    trainable_parameters,
    with_score_head,
)
from srlm_fast.model.fp8 import Fp8Linear
from srlm_fast.model.lora import PARTS, TARGETS, _LowRank
from srlm_fast.model.quantised import LINEARS, quantised_kind
from srlm_fast.model.quantised import quantise_linears as quantise_into
from srlm_fast.sampler import Sampler, SamplingParams, invariant
from srlm_fast.sampler.packed import can_pack
from tests.model.test_load import byte_tokenizer

CONFIG = ModelConfig("llama", 264, 32, 48, 2, 4, 2, 8, eos_token_ids=(0,))
BIASED = CONFIG.replace(family="qwen2", qkv_bias=True)
IDS = torch.arange(1, 24)
SOME = ("q_proj", "v_proj", "up_proj", "down_proj")
BASES = [None, "fp8", "int8"]
GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


def hidden(model):
    context = PackedContext([15, 8], model.config.windows)
    return model(IDS, context.positions, context)


def base_model(base=None, config=CONFIG, dtype=torch.float32):
    model = random_model(config, byte_tokenizer(), dtype=dtype)
    kinds = {"fp8": Fp8Linear, "int8": Int8Linear}
    return model if base is None else quantise_into(model, kinds[base])


def adapted(base=None, config=CONFIG, dtype=torch.float32, targets=TARGETS, seed=0):
    """With both factors away from zero."""
    model = add_lora(base_model(base, config, dtype), LoraConfig(3, 6.0, targets=targets), seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, factor in lora_parameters(model):
            if name.endswith(".B"):
                factor.copy_(torch.randn(factor.shape, generator=draw) * 0.2)
    return model


def merged(model):
    """The sum of base and product in plain weights, part by part as PEFT has them."""
    plain = remove_lora(copy.deepcopy(model))
    with torch.no_grad():
        for layer, whole in zip(model.layers, plain.layers, strict=True):
            for name in PARTS:
                lora, weight = (
                    getattr(layer, name)._modules.get("lora"),
                    getattr(whole, name).weight,
                )
                if lora is None:
                    continue
                a, b = lora.A.split(3), lora.B.split([s.stop - s.start for s in lora.spans])
                for span, a_part, b_part in zip(lora.spans, a, b, strict=True):
                    weight[span] += 6.0 / 3 * b_part @ a_part
    return plain


@pytest.mark.parametrize("config", [CONFIG, BIASED], ids=["llama", "biases"])
@pytest.mark.parametrize("base", BASES)
def test_a_fresh_adapter_changes_no_bit(base, config):
    model = base_model(base, config)
    with torch.no_grad():
        before = hidden(model)
        assert torch.equal(hidden(add_lora(model, seed=1)), before)
    assert has_lora(model) and not can_pack(model)
    wanted = {name for name, _ in lora_parameters(model)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    assert len(wanted) == 2 * 4 * len(model.layers)
    other = dict(lora_parameters(add_lora(base_model(base, config), seed=2)))
    again = dict(lora_parameters(add_lora(base_model(base, config), seed=1)))
    for name, factor in lora_parameters(model):
        assert factor.dtype == torch.float32 and torch.equal(factor, again[name])
        assert name.endswith(".B") or not torch.equal(factor, other[name])
    classes = [type(module) for module in base_model(base, config).modules()]
    assert [type(module) for module in remove_lora(model).modules()] == classes
    assert all(p.requires_grad == (base is None) for p in model.parameters())


@pytest.mark.parametrize("config", [CONFIG, BIASED], ids=["llama", "biases"])
@pytest.mark.parametrize("targets", [TARGETS, SOME], ids=["all", "some"])
def test_it_computes_what_merged_weights_do(targets, config):
    model = adapted(None, config, torch.float64, targets)
    torch.testing.assert_close(hidden(model), hidden(merged(model)), rtol=1e-12, atol=1e-12)


def test_parts_without_an_adapter_are_those_of_the_base():
    layer = adapted(targets=SOME).layers[0]
    assert not hasattr(layer.o, "lora")
    assert layer.qkv.lora.A.shape == (2 * 3, 32) and layer.qkv.lora.B.shape == (32 + 16, 3)
    assert layer.qkv.lora.spans == [slice(0, 32), slice(48, 64)]
    assert layer.gate_up.lora.spans == [slice(48, 96)]
    x = torch.randn(5, 32)
    base, found = torch.nn.functional.linear(x, layer.qkv.weight), layer.qkv(x)
    assert torch.equal(found[:, 32:48], base[:, 32:48])
    assert not torch.isclose(found[:, :32], base[:, :32]).all(1).any()


def test_gradients_are_those_of_finite_differences():
    draw = torch.Generator().manual_seed(0)
    spans = [slice(0, 3), slice(5, 9)]
    sizes = ((6, 9), (6, 4), (4, 4), (7, 2))  # y, x, A of two parts and rank 2, B
    given = [torch.randn(s, generator=draw, dtype=torch.float64) for s in sizes]
    for tensor in given:
        tensor.requires_grad_()

    def product(y, x, a, b):
        return _LowRank.apply(y * 1.0, x, a, b, 0.7, spans)

    assert torch.autograd.gradcheck(product, given)
    y, x, a, b = given
    found = product(y, x, a, b)
    assert torch.equal(found[:, 3:5], y[:, 3:5])
    torch.testing.assert_close(found[:, 5:9], y[:, 5:9] + 0.7 * x @ a[2:].T @ b[3:].T)


def test_dropout_is_of_training_alone():
    model = add_lora(base_model(), LoraConfig(4, 8.0, dropout=0.5))
    with torch.no_grad():
        for _, factor in lora_parameters(model):
            factor.fill_(0.1)
        assert torch.equal(hidden(model), hidden(model))
        model.train()
        assert not torch.equal(hidden(model), hidden(model))


# ---------------------------------------------------------------------------- quantised bases


def test_int8_rows_are_within_half_a_step():
    linear = Int8Linear(5, 3, bias=False)
    weight = torch.tensor([[127.0, -3.4, 0.6, 0.0, 1.0], [0.0] * 5, [-2.0, 1.0, 0.5, 0.01, 2.0]])
    linear.set_weight(weight)
    assert linear.weight[0].tolist() == [127, -3, 1, 0, 1] and linear.weight[2, 0] == -127
    assert ((linear.weight * linear.scale - weight).abs() <= linear.scale / 2).all()
    assert not linear(torch.randn(4, 5))[:, 1].any()


@pytest.mark.parametrize("kind", [Int8Linear, Fp8Linear])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_gradient_is_that_of_the_stored_weight(kind, dtype):
    linear = kind(16, 32, bias=True)
    linear.set_weight(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    linear.set_rows(3, torch.zeros(1, 16))
    weight = (linear.weight.double() * linear.scale.double()).detach()
    x = torch.randn(7, 16, dtype=dtype)
    x[2] = 0
    x.requires_grad_()
    dy = torch.randn(7, 32, dtype=dtype)
    y = linear(x)
    y.backward(dy)
    wanted, eps = dy.double() @ weight, torch.finfo(dtype).eps
    assert (x.grad - wanted).abs().max() < 4 * eps * wanted.abs().max()
    exact = x.detach().double() @ weight.T + linear.bias
    rounding = 4 * eps if kind is Int8Linear else 0.1
    assert (y - exact).abs().max() < rounding * exact.abs().max() and y.isfinite().all()


def test_layers_share_one_buffer_that_stays():
    model = base_model("int8")
    scratch = {id(getattr(layer, name).scratch) for layer in model.layers for name in LINEARS}
    assert len(scratch) == 1
    buffer = model.layers[0].qkv.scratch
    with torch.inference_mode():  # a sampler comes first, a trainer later
        hidden(model)
    place = buffer._buffer.data_ptr()
    hidden(add_lora(model)).sum().backward()
    assert buffer._buffer.data_ptr() == place and buffer._buffer.numel() == 2 * 48 * 32


@pytest.mark.parametrize("base", ["fp8", "int8"])
def test_factors_learn_beside_a_quantised_base(base):
    """Their gradients: exactly those over the dequantised weights for int8, near them for fp8,
    where what enters is rounded too.
    """
    model, plain = adapted(base), adapted()
    stored = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            scale = stored.get(name.removesuffix("weight") + "scale")
            weight.copy_(stored[name].float() * (1 if scale is None else scale))
    for each in (model, plain):
        hidden(each)[:, 0].sum().backward()
    near = 1e-4 if base == "int8" else 0.4
    for (name, ours), (_, theirs) in zip(
        lora_parameters(model), lora_parameters(plain), strict=True
    ):
        assert (ours.grad - theirs.grad).norm() < near * theirs.grad.norm(), name
    assert all(p.grad is None for name, p in model.named_parameters() if ".lora." not in name)


def test_an_adapter_on_random_fp8_weights():
    model = add_lora(random_fp8_model(CONFIG, "cpu"), LoraConfig(2, 4.0))
    hidden(model).float().square().sum().backward()
    assert all(factor.grad.isfinite().all() for _, factor in lora_parameters(model))
    assert trainable_parameters(model) == 2 * 2 * (
        (3 * 32 + 64) + (32 + 32) + (2 * 32 + 96) + (48 + 32)
    )


# ----------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("base", BASES)
def test_the_sampler_applies_it(base):
    model = adapted(base)
    sampler = Sampler(model)
    prompts = [[3, 5, 7], list(range(20, 50))]
    for _ in range(2):
        generations = sampler.generate(prompts, GREEDY)
        for prompt, generation in zip(prompts, generations, strict=True):
            ids = torch.tensor([*prompt, *generation.samples[0].token_ids])
            context = PackedContext([len(ids)], model.config.windows)
            with torch.no_grad():
                logits = model.logits(model(ids, context.positions, context))[len(prompt) - 1 : -1]
            chosen = logits.gather(1, ids[len(prompt) :, None])[:, 0]
            assert (logits.amax(1) - chosen).max() < (0.2 if base == "fp8" else 1e-4)
        (alone,) = Sampler(model).generate(prompts[:1], GREEDY)
        assert alone.samples == generations[0].samples
        with torch.no_grad():  # a trained adapter is seen by the same sampler
            for _, factor in lora_parameters(model):
                factor.mul_(-1.5)
        model.touch()


def test_its_products_run_in_blocks_of_rows_where_those_of_the_base_do(monkeypatch):
    rows = []

    def block(x, rest, kwargs):
        rows.append((len(x), tuple(rest[0].shape)))
        return torch.nn.functional.linear(x, *rest, **kwargs)

    layer, x = adapted().layers[0], torch.randn(100, 32)
    with torch.inference_mode():
        plain = layer.gate_up(x)
        monkeypatch.setattr(invariant, "_block", block)
        with invariant.RowBlocks():
            found = layer.gate_up(x)
    torch.testing.assert_close(found, plain)
    shapes = [(96, 32), (6, 32), (48, 3), (48, 3)]  # of the base, A, and each B
    assert rows == [(count, shape) for shape in shapes for count in (64, 36)]


@pytest.mark.gpu
@pytest.mark.parametrize("base", BASES)
def test_captured_graphs_read_the_adapter_as_it_is(base):
    config = CONFIG.replace(hidden_size=256, intermediate_size=512, head_dim=64)
    model = random_model(config, device="cuda", dtype=torch.bfloat16)
    if base is not None:
        quantise_into(model, {"fp8": Fp8Linear, "int8": Int8Linear}[base])
    add_lora(model, LoraConfig(8, 16.0))
    sampler, prompt = Sampler(model, kv_bytes=2**24), list(range(1, 40))
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=True)
    for _ in range(3):
        (generation,) = sampler.generate([prompt], params)
        (sample,) = generation.samples
        ids = torch.tensor([*prompt, *sample.token_ids], device="cuda")
        context = PackedContext([len(ids)], config.windows, model.device)
        with torch.no_grad():
            logits = model.logits(model(ids, context.positions, context)).float()
        logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        chosen = logps.gather(1, ids[len(prompt) :, None])[:, 0].cpu()
        assert (torch.tensor(sample.logprobs) - chosen).abs().max() < (0.5 if base else 0.1)
        with torch.no_grad():  # what training does between two calls: in place, then touch
            for name, factor in lora_parameters(model):
                if name.endswith(".B"):
                    factor.normal_(0.0, 0.2)
        model.touch()


# ------------------------------------------------------------------------------------ on disk


@pytest.fixture
def folders(tmp_path):
    base_model().save(tmp_path / "base")
    model = load_model(tmp_path / "base")
    made = adapted()
    add_lora(model, made.adapter.config)
    with torch.no_grad():
        for (_, ours), (_, theirs) in zip(
            lora_parameters(model), lora_parameters(made), strict=True
        ):
            ours.copy_(theirs)
    model.save(tmp_path / "adapter")
    return tmp_path


def test_files_are_those_of_peft(folders):
    """Names as PEFT 0.21 writes them; its own reading was compared by hand."""
    row = json.loads((folders / "adapter" / "adapter_config.json").read_text())
    assert (row["peft_type"], row["task_type"], row["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert (row["r"], row["lora_alpha"], row["lora_dropout"]) == (3, 6.0, 0.0)
    assert row["base_model_name_or_path"] == str(folders / "base")
    assert set(row["target_modules"]) == set(TARGETS)
    tensors = load_file(folders / "adapter" / "adapter_model.safetensors")
    sizes = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (32, 16),
        "self_attn.v_proj": (32, 16),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (32, 48),
        "mlp.up_proj": (32, 48),
        "mlp.down_proj": (48, 32),
    }
    wanted = {}
    for layer in range(2):
        for part, (columns, rows) in sizes.items():
            name = f"base_model.model.model.layers.{layer}.{part}"
            wanted[f"{name}.lora_A.weight"] = (3, columns)
            wanted[f"{name}.lora_B.weight"] = (rows, 3)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == wanted
    model = load_model(folders / "adapter")
    v = tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    assert torch.equal(model.layers[1].qkv.lora.B[48:], v)
    up = tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    assert torch.equal(model.layers[0].gate_up.lora.A[3:], up)
    assert (folders / "adapter" / "tokenizer.json").is_file()
    assert not (folders / "adapter" / "model.safetensors").exists()


@pytest.mark.parametrize("base", BASES)
def test_a_round_trip_is_exact(folders, base):
    model = load_model(folders / "adapter", base_dtype=base)
    wanted = adapted(base)
    assert model.adapter.config == wanted.adapter.config
    with torch.no_grad():
        assert torch.equal(hidden(model), hidden(wanted))
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".lora." not in n)
    assert read_config(folders / "adapter") == read_config(folders / "base")
    model.save(folders / "again")
    assert quantised_kind(load_model(folders / "again")) == base  # it says so itself
    for file in (folders / "adapter").iterdir():
        assert (folders / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_weights_are_quantised_as_they_are_read(folders):
    for name, kind in (("fp8", Fp8Linear), ("int8", Int8Linear)):
        model = load_model(folders / "base", base_dtype=name)
        wanted = quantise_into(load_model(folders / "base"), kind)
        for (key, ours), (_, theirs) in zip(
            model.named_parameters(), wanted.named_parameters(), strict=True
        ):
            assert ours.dtype == theirs.dtype and torch.equal(ours.float(), theirs.float()), key
        assert not trainable_parameters(model)


def test_load_weights_replaces_the_adapter_in_place(folders):
    model = load_model(folders / "base", adapter=Adapter(LoraConfig(3, 6.0), seed=9))
    fresh = {name: factor.detach().clone() for name, factor in lora_parameters(model)}
    places, version = [p.data_ptr() for p in model.parameters()], model.weights_version
    model.load_weights(folders / "adapter")
    assert [p.data_ptr() for p in model.parameters()] == places
    assert model.weights_version > version
    with torch.no_grad():
        assert torch.equal(hidden(model), hidden(load_model(folders / "adapter")))
    random_model(CONFIG, byte_tokenizer(), seed=4).save(folders / "other")
    for base in ("base", "other"):  # a base comes with a fresh adapter
        model.load_weights(folders / base)
        for name, factor in lora_parameters(model):
            assert torch.equal(factor, fresh[name]), name
        plain = load_model(folders / base)
        assert torch.equal(hidden(model), hidden(plain)) and model.source == str(folders / base)


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def first_tensor(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight")
    save_file(tensors, path)


def shorter(tensors, name):
    tensors[name] = tensors[name][:, :-1].contiguous()


def renamed(tensors, name):
    tensors[name.replace("q_proj", "x_proj")] = tensors.pop(name)


MISTAKES = {
    "other kind": (lambda f: edited(f, peft_type="IA3"), "peft_type is 'IA3'; wanted LORA"),
    "dora": (lambda f: edited(f, use_dora=True), "use_dora is True; it is not supported"),
    "pissa": (lambda f: edited(f, init_lora_weights="pissa"), "init_lora_weights is 'pissa'"),
    "bias": (lambda f: edited(f, bias="all"), "bias is 'all'"),
    "ranks": (lambda f: edited(f, rank_pattern={"q_proj": 2}), "rank_pattern is"),
    "layers": (lambda f: edited(f, layers_to_transform=[0]), "layers_to_transform is"),
    "head": (lambda f: edited(f, modules_to_save=["lm_head"]), "modules_to_save is"),
    "target": (lambda f: edited(f, target_modules=["c_attn"]), "target_modules has 'c_attn'"),
    "pattern": (lambda f: edited(f, target_modules=".*_proj"), "wanted a list of names"),
    "rank": (lambda f: edited(f, r=0), "rank: 0, wanted 1 or more"),
    "no rank": (lambda f: edited(f, r="8"), "r is '8'; wanted a number"),
    "no base": (lambda f: edited(f, base_model_name_or_path=None), "wanted the base model"),
    "lost base": (
        lambda f: edited(f, base_model_name_or_path="/nowhere/base"),
        "the base of the adapter: /nowhere/base: no such folder",
    ),
    "base of itself": (
        lambda f: edited(f, base_model_name_or_path=str(f)),
        "is an adapter itself",
    ),
    "no json": (lambda f: (f / "adapter_config.json").write_text("{"), "found no JSON"),
    "list": (lambda f: (f / "adapter_config.json").write_text("[]"), "found no JSON object"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "without its weights"),
    "shape": (lambda f: first_tensor(f, shorter), "q_proj.lora_A.weight has shape [3, 31]"),
    "name": (lambda f: first_tensor(f, renamed), "x_proj.lora_A.weight has no place"),
    "lost": (lambda f: first_tensor(f, dict.pop), "q_proj.lora_A.weight is missing"),
}


def truncated(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("name", [*MISTAKES, "torn"])
def test_a_folder_that_cannot_be_used_is_refused(folders, name):
    change, wanted = (MISTAKES | {"torn": (truncated, "is truncated")})[name]
    change(folders / "adapter")
    with pytest.raises(ModelError) as error:
        load_model(folders / "adapter")
    assert wanted in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(str(folders / "adapter"))


def test_what_does_not_go_together_is_refused(folders):
    with pytest.raises(ModelError, match="is an adapter, the model has none"):
        load_model(folders / "base").load_weights(folders / "adapter")
    other = add_lora(load_model(folders / "base"), LoraConfig(2, 4.0))
    with pytest.raises(ModelError, match="an adapter of rank 3; the model's has 2"):
        other.load_weights(folders / "adapter")
    with pytest.raises(ValueError, match="has an adapter already"):
        add_lora(other)
    with pytest.raises(ValueError, match="has an adapter, wanted its weights themselves"):
        with_score_head(other, seed=0)
    (folders / "adapter" / "base.json").write_text("{}")
    with pytest.raises(ModelError, match=r"base.json: wanted an object with base_dtype"):
        load_model(folders / "adapter")
    with pytest.raises(ModelError, match="base dtype 'int4' is unknown; wanted fp8, int8"):
        load_model(folders / "base", base_dtype="int4")
    with pytest.raises(ModelError, match="base dtype fp8: model: float16 on cpu, wanted bfloat16"):
        load_model(folders / "base", dtype="float16", base_dtype="fp8")
    with pytest.raises(ValueError, match="layers.0.qkv is AdaptedLinear, wanted Linear"):
        quantise_linears(other.to(torch.bfloat16))
    for changes, wanted in (
        ({"rank": 0}, "rank: 0"),
        ({"alpha": 0.0}, "alpha: 0.0"),
        ({"dropout": 1.0}, "dropout: 1.0"),
        ({"targets": ("lm_head",)}, "targets: 'lm_head', wanted some of q_proj"),
        ({"targets": ()}, "targets: none"),
    ):
        with pytest.raises(ValueError, match=wanted):
            LoraConfig(**changes)
