"""rope_write_kv against the operations that it stands for."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.kernels import rms_norm, rope_qk
from srlm_fast.kernels.kv_pages import FP8, write_kv
from srlm_fast.kernels.rope_kv import rope_write_kv, rope_write_kv_reference
from tests.kernels.guard import guarded
from tests.kernels.three_way import assert_no_worse

EPS = 1e-6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}
CASES = {"Llama": (8, 2, 64, False), "Qwen3": (14, 2, 32, True), "one head": (1, 1, 18, True)}
PAGE, TOKENS = 16, 5


def make(case, dtype, device):
    """qkv, cos, sin, slots, norms; keys and values are rows of a fused projection."""
    num_heads, num_kv_heads, width, has_norm = case
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    qkv = new(TOKENS, (num_heads + 2 * num_kv_heads) * width + 16)[:, :-16]
    angles = torch.randn(TOKENS, width // 2, generator=generator).to(device) * 100
    norms = [new(width) + 1, new(width) + 1] if has_norm else [None, None]
    slots = torch.tensor([3, 17, -1, 40, 16], device=device)
    return qkv, angles.cos(), angles.sin(), slots, norms


def pages(case, dtype, device):
    shape = (2, 3, case[1], PAGE, case[2])
    return torch.zeros(shape).to(device, dtype)


def run(form, case, qkv, cos, sin, slots, norms, cache=None):
    keys, values = pages(case, cache or qkv.dtype, qkv.device)
    q = form(qkv, cos, sin, slots, keys, values, *norms, EPS)
    return {"q": q, "keys": keys, "values": values}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_three_way(kernel_device, case, dtype):
    qkv, cos, sin, slots, norms = make(case, dtype, kernel_device)
    wide = [None if x is None else x.double() for x in norms]
    truth = run(
        rope_write_kv_reference, case, qkv.double(), cos.double(), sin.double(), slots, wide
    )
    eager = run(rope_write_kv_reference, case, qkv, cos, sin, slots, norms)
    with guarded():
        ours = run(rope_write_kv, case, qkv, cos, sin, slots, norms)
    for name, right in truth.items():
        floor = FLOOR[dtype] * float(right.abs().max())
        assert_no_worse(ours[name], eager[name], right, floor, name)
        if name != "q":
            assert torch.equal(ours[name] == 0, right == 0)  # what was written, nothing else
    assert torch.equal(ours["values"], eager["values"])


@pytest.mark.parametrize("case", [CASES["Llama"], CASES["Qwen3"]], ids=["Llama", "Qwen3"])
def test_rounds_where_the_operations_apart_do(kernel_device, case):
    """Of bf16; the order of a sum may differ, hence one step of it here and there."""
    qkv, cos, sin, slots, norms = make(case, torch.bfloat16, kernel_device)
    num_heads, num_kv_heads, width, _ = case
    heads = qkv.view(TOKENS, -1, width)
    q, k, v = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q, k = (x if n is None else rms_norm(x, n, EPS) for x, n in zip((q, k), norms, strict=True))
    q, k = rope_qk(q, k, cos, sin)
    keys, values = pages(case, torch.bfloat16, kernel_device)
    write_kv(k, v, slots, keys, values)
    ours = run(rope_write_kv, case, qkv, cos, sin, slots, norms)
    for name, apart in (("q", q), ("keys", keys), ("values", values)):
        assert (ours[name] != apart).float().mean() < 2e-3, name


def test_fp8_pages(kernel_device):
    case = CASES["Llama"]
    inputs = make(case, torch.bfloat16, kernel_device)
    ours = run(rope_write_kv, case, *inputs, cache=FP8)
    eager = run(rope_write_kv_reference, case, *inputs, cache=FP8)
    for name in ("keys", "values"):
        found, right = ours[name].float(), eager[name].float()
        assert ((found - right).abs() <= right.abs() / 8 + 2**-9).all()


def test_no_tokens(kernel_device):
    qkv, cos, sin, slots, norms = make(CASES["Llama"], torch.float32, kernel_device)
    none = (x[:0] for x in (qkv, cos, sin, slots))
    assert run(rope_write_kv, CASES["Llama"], *none, norms)["q"].shape == (0, 8, 64)


def test_refuses():
    case = CASES["Qwen3"]
    qkv, cos, sin, slots, norms = make(case, torch.float32, "cpu")
    keys, values = pages(case, torch.float32, "cpu")
    good = {"qkv": qkv, "cos": cos, "sin": sin, "slots": slots, "keys": keys, "values": values}
    good |= dict(zip(("q_norm", "k_norm"), norms, strict=True))
    for argument, value in (
        ("qkv", qkv[:, :-1]),
        ("qkv", qkv[:, : 4 * 32]),
        ("cos", cos[:2]),
        ("sin", sin.double()),
        ("slots", slots.float()),
        ("keys", keys.bfloat16()),
        ("values", values[:1]),
        ("q_norm", norms[0][:3]),
        ("k_norm", None),
    ):
        with pytest.raises(ValueError, match=f"^{argument}: "):
            rope_write_kv(**good | {argument: value})
