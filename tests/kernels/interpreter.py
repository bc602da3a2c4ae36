"""Triton's interpreter, corrected. Importing this before any kernel runs is enough.

The interpreter keeps bf16 as uint16 and computes on the bit patterns: products are meaningless, and
a cast from fp32 cuts off instead of rounding to nearest even. Here bf16 operands are widened to
fp32, the operation is the interpreter's own, and a bf16 result is rounded once, as the hardware
does. Its conversions to and from fp8 (e4m3), some of which are a power of two off, are PyTorch's
here. `range` over a run-time argument, which triton 3.6.0 cannot do with numpy 2.4, is repaired,
and so are operations of a constexpr with a tensor to its right, whose results 3.7 does not take.

It prepares triton's language at every launch and at every call of a function, and describes the
shape of every tensor anew, which takes most of the time. Here the language stays prepared and what
follows from a shape is kept.

These are private names of triton (3.6 and 3.7); test_interpreter.py holds them to account.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter
from triton.language.semantic import TritonSemantic
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

CANONICAL_NAN = np.uint16(0x7FC0)


def fp32_of_bits(bits: np.ndarray) -> np.ndarray:
    """bf16 is the upper half of an fp32."""
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def bits_of_fp32(values: np.ndarray) -> np.ndarray:
    """To nearest, ties to even: the lower half is worth 1 from 0x8000, or 0x8001 where even."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    upper = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), CANONICAL_NAN, upper)


def is_bf16(operand: Any) -> bool:
    return isinstance(operand, TensorHandle) and operand.dtype.scalar == tl.bfloat16


def widened(operand: Any) -> Any:
    return TensorHandle(fp32_of_bits(operand.data), tl.float32) if is_bf16(operand) else operand


def rounded(handle: TensorHandle) -> TensorHandle:
    return TensorHandle(bits_of_fp32(handle.data.astype(np.float32)), tl.bfloat16)


def in_fp32(method: Any) -> Any:
    """The builder's method on widened operands, its result rounded unless it compares."""

    def corrected(self: InterpreterBuilder, *operands: Any) -> TensorHandle:
        if not any(map(is_bf16, operands)):
            return method(self, *operands)
        result = method(self, *map(widened, operands))
        return rounded(result) if result.data.dtype == np.float32 else result

    return corrected


def cast(method: Any) -> Any:
    def corrected(self: InterpreterBuilder, source: TensorHandle, dtype: Any) -> TensorHandle:
        if dtype.scalar == tl.bfloat16:
            return source if is_bf16(source) else rounded(source)
        wide = widened(source)
        return wide if dtype.scalar == wide.dtype.scalar else method(self, wide, dtype)

    return corrected


def through_torch(method: Any) -> Any:
    """A conversion between fp8 and another width, by way of fp32."""

    def corrected(
        self: InterpreterBuilder, source: TensorHandle, dtype: Any, rounding: Any
    ) -> TensorHandle:
        if source.dtype.scalar == tl.float8e4nv:
            bits = torch.from_numpy(np.ascontiguousarray(source.data))
            wide = bits.view(torch.float8_e4m3fn).float().numpy()
            return self.cast_impl(TensorHandle(wide, tl.float32), dtype)
        if dtype.scalar == tl.float8e4nv:
            wide = torch.from_numpy(np.ascontiguousarray(widened(source).data)).float()
            bits = wide.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
            return TensorHandle(bits, tl.float8e4nv)
        return method(self, source, dtype, rounding)

    return corrected


def dot(method: Any) -> Any:
    def corrected(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> Any:
        return method(self, widened(a), widened(b), *rest)

    return corrected


def out_of_constexpr(method: Any) -> Any:
    def corrected(self: TritonSemantic, x: Any, *rest: Any, **options: Any) -> Any:
        return method(self, x.value if isinstance(x, tl.constexpr) else x, *rest, **options)

    return corrected


def with_index(patch_tensor: Any) -> Any:
    """Every launch patches tl.tensor anew; this adds to what it does."""

    def corrected(tensor: type, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    return corrected


def quietly(launch: Any) -> Any:
    """A GPU overflows without a word."""

    def corrected(self: Any, *arguments: Any, **options: Any) -> None:
        with np.errstate(all="ignore"):
            launch(self, *arguments, **options)

    return corrected


class Kept:
    """Where the language's originals would be kept to be put back."""

    def set_attr(self, owner: Any, name: str, value: Any) -> None:
        setattr(owner, name, value)

    def restore(self) -> None:
        pass


def once(patch_lang: Any) -> Any:
    """For every module of kernels."""
    prepared: dict[int, Any] = {}  # the module's globals, which must live on to keep their id

    def patch(function: Any) -> Kept:
        if id(function.__globals__) not in prepared:
            prepared[id(function.__globals__)] = function.__globals__
            patch_lang(function)
        return Kept()

    return patch


@cache
def described(shape: tuple[int, ...]) -> tuple[tl.constexpr, tl.tuple]:
    return tl.constexpr(math.prod(shape)), tl.tuple([tl.constexpr(size) for size in shape])


def by_name(np_dtype: Any) -> Any:
    """The dtype in numpy of a type's elements."""
    kept: dict[str, np.dtype] = {}

    def corrected(type: Any) -> np.dtype:
        name = type.scalar.name
        if name not in kept:
            kept[name] = np_dtype(type.scalar)
        return kept[name]

    return corrected


def new_tensor(self: tl.tensor, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = described(tuple(type.shape) if type.is_block() else ())


@cache
def described_block(shape: tuple[int, ...]) -> SimpleNamespace:
    """By way of triton's own, which refuses some shapes."""
    block = SimpleNamespace()
    stock_block(block, tl.int32, list(shape))
    block.text = str(block.shape)
    return block


def new_block(self: tl.block_type, element_ty: Any, shape: Any) -> None:
    block = described_block(tuple([getattr(size, "value", size) for size in shape]))
    self.element_ty, self.shape, self.numel = element_ty, block.shape, block.numel
    self.name = f"<{block.text}, {element_ty}>"


def bf16_constant(self: InterpreterBuilder, value: float) -> TensorHandle:
    return TensorHandle(bits_of_fp32(np.array([value], np.float32)), tl.bfloat16)


for name, correct in {
    "binary_op": in_fp32,
    "create_fma": in_fp32,
    "cast_impl": cast,
    "create_fp_to_fp": through_torch,
    "create_dot": dot,
}.items():
    setattr(InterpreterBuilder, name, correct(getattr(InterpreterBuilder, name)))
InterpreterBuilder.get_bf16 = bf16_constant
TritonSemantic.to_tensor = out_of_constexpr(TritonSemantic.to_tensor)
interpreter._patch_lang_tensor = with_index(interpreter._patch_lang_tensor)
interpreter._LangPatchScope = Kept
interpreter._get_np_dtype = by_name(interpreter._get_np_dtype)
interpreter._patch_lang = once(interpreter._patch_lang)
stock_block, tl.block_type.__init__ = tl.block_type.__init__, new_block
tl.tensor.__init__ = new_tensor
interpreter.GridExecutor.__call__ = quietly(interpreter.GridExecutor.__call__)
