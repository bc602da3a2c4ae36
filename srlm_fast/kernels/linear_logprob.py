"""Log-probabilities of given tokens under softmax(hidden @ head.T + bias), without a [T, V] tensor.

    z_t = hidden_t @ head.T + bias             logp_t = z_ty - log sum_j exp(z_tj),  y = targets_t

T rows, D width, V vocabulary. Results in nats, fp32 (fp64 for fp64 input). Rows whose target is
`ignore_index` give 0 and never reach a matmul. The vocabulary is walked in blocks with a running
maximum and sum (online softmax, arXiv 1805.02867). The target's own logit is kept out of both: with
n_t = log sum_{j != y} exp(z_tj),

    logp_t = logsigmoid(z_ty - n_t)            1 - p_ty = sigmoid(n_t - z_ty)

which lose nothing where p -> 1 or p -> 0; 1 - p is never a difference. With g_t = dL/dlogp_t,
lse_t = log sum_j exp(z_tj) and p_tj = exp(z_tj - lse_t):

    dL/dz_tj = -g_t p_tj  (j != y)             dL/dz_ty = g_t (1 - p_ty)
    dL/dhidden = dL/dz @ head                  dL/dhead = dL/dz^T @ hidden
                                               dL/dbias = sum_t dL/dz_t

The route follows from what needs a gradient and from `workspace_bytes` (N rows that count):

    score      nothing          2 N D V FLOPs   running sums only
    frozen     hidden only      4 N D V         dlogp/dhidden is made in the forward pass: [N, D]
    kept       head, [N, V] fits    6 N D V     probabilities are kept, at most workspace_bytes
    recompute  head             8 N D V         probabilities are made again, block by block

At no time is there more than max(workspace_bytes, N * MIN_BLOCK * b) of logits, b bytes each: 4,
and 2 more where the matmul is in half precision. dL/dhead is summed over all rows inside one matmul
per block, so it is rounded to the dtype of the head once; dL/dhidden is summed over blocks in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import check_tensor

# Blocks that stay in the last-level cache are the fastest (AMD Zen 3, 32 MiB, torch 2.13, fp32).
WORKSPACE_BYTES = 16 << 20
# Narrower blocks starve the matmul, so many rows may need more than the workspace asked for.
MIN_BLOCK = 256

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def linear_logprob_reference(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The same in eager PyTorch with all logits in memory.

    hidden [T, D], head [V, D], targets [T], bias [V] -> [T].
    """
    logits = F.linear(hidden, head, bias).to(_wide(hidden.dtype))
    counts = targets != ignore_index
    index = torch.where(counts, targets, 0).long()
    logp = logits.log_softmax(-1).gather(1, index[:, None]).squeeze(1)
    return torch.where(counts, logp, 0.0)


def linear_logprob(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
) -> Tensor:
    """Log-probs [T] of `targets`, nats, fp32 (fp64 for fp64 input); 0 where the target is ignored.

    hidden [T, D] fp32, bf16, fp16 or fp64; head [V, D] and bias [V] of the same dtype and device;
    targets [T] int64 or int32, each in 0..V-1 or `ignore_index`. Any strides. No rows, or none that
    counts: zeros, and zero gradients. Differentiable once, for hidden, head and bias.

    Extra memory: the logits of the formula above, some [N, D] for the N rows that count, and the
    gradients. On a GPU it waits for the device twice (to count rows, to check targets).

    Raises ValueError, naming the argument, on wrong shapes, dtypes or devices, a target out of
    range, or a DTensor.
    """
    _check(hidden, head, targets, bias)
    rows = (targets != ignore_index).nonzero().squeeze(1)
    all_count = rows.numel() == targets.numel()
    if not all_count:
        hidden, chosen = hidden.index_select(0, rows), targets.index_select(0, rows)
    else:
        chosen = targets
    _check_range(chosen, head.shape[0], ignore_index)
    taken = route(hidden, head, bias, workspace_bytes)
    if taken == "score":
        # Detached, so that autograd does not keep a node that has nothing to give back.
        hidden, head, bias = hidden.detach(), head.detach(), None if bias is None else bias.detach()
    logp = _LinearLogprob.apply(hidden, head, bias, chosen.long(), taken, workspace_bytes)
    if all_count:
        return logp
    return logp.new_zeros(targets.shape[0]).index_copy(0, rows, logp)


def route(
    hidden: Tensor, head: Tensor, bias: Tensor | None, workspace_bytes: int = WORKSPACE_BYTES
) -> str:
    """Which of "score", "frozen", "kept" and "recompute" (see above) these inputs take."""
    if not torch.is_grad_enabled():
        return "score"
    if not head.requires_grad and not (bias is not None and bias.requires_grad):
        return "frozen" if hidden.requires_grad else "score"
    fits = hidden.shape[0] * head.shape[0] * _logit_bytes(hidden) <= workspace_bytes
    return "kept" if fits else "recompute"


def _check(hidden: Tensor, head: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    check_tensor("hidden", hidden, ("T", "D"), _FLOATS)
    (num_rows, width), like = hidden.shape, ((hidden.dtype,), hidden.device)
    check_tensor("head", head, ("V", width), *like)
    check_tensor("targets", targets, (num_rows,), (torch.int64, torch.int32), hidden.device)
    if bias is not None:
        check_tensor("bias", bias, (head.shape[0],), *like)
    if head.shape[0] == 0:
        raise ValueError("head: no rows, wanted at least one")


def _check_range(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    if targets.numel() == 0:
        return
    low, high = (int(end) for end in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        found = low if low < 0 else high
        raise ValueError(f"targets: {found}, wanted 0..{num_classes - 1} or {ignore_index}")


class _LinearLogprob(torch.autograd.Function):
    """hidden [N, D], head [V, D], bias [V] or None, targets [N] int64 -> [N]; every row counts."""

    @staticmethod
    def forward(ctx, hidden, head, bias, targets, taken, workspace_bytes):
        num_rows, num_classes = hidden.shape[0], head.shape[0]
        block = workspace_bytes // (max(num_rows, 1) * _logit_bytes(hidden))
        block = num_classes if taken == "kept" else min(max(block, MIN_BLOCK), num_classes)
        blocks = _Blocks(hidden, head, bias, block)

        top = torch.full((num_rows, 1), torch.finfo(blocks.wide).min, **blocks.like)
        total, target_z = torch.zeros((2, num_rows, 1), **blocks.like)
        product = torch.zeros(hidden.shape, **blocks.like) if taken == "frozen" else None
        for start in range(0, num_classes, block):
            z = blocks.logits(start)
            inside, cell = _cells(targets, start, z.shape[1])
            found = z.gather(1, cell)
            target_z = torch.where(inside, found, target_z)
            z.scatter_(1, cell, torch.where(inside, float("-inf"), found))
            new_top = torch.maximum(top, z.amax(1, keepdim=True))
            expz = z.sub_(new_top).exp_()
            shrink = (top - new_top).exp_()
            total = total * shrink + expz.sum(1, keepdim=True)
            top = new_top
            if product is not None:
                blocks.add_product(product.mul_(shrink), expz, start)

        # From here on relative to top: at logits of 100 a log-sum-exp itself has lost two digits.
        target_z, rest = target_z - top, total.log()
        lse = torch.logaddexp(target_z, rest)
        miss = (rest - lse).exp_()  # 1 - p of the target
        ctx.taken, ctx.block = taken, block
        if taken == "frozen":
            slope = miss * head.index_select(0, targets) - (-lse).exp_() * product
            ctx.save_for_backward(slope.to(hidden.dtype))
        elif taken == "kept":
            probs = expz.mul_((-lse).exp_()).scatter_(1, targets[:, None], -miss)
            ctx.save_for_backward(hidden, head, bias, targets, probs.to(blocks.narrow))
        elif taken == "recompute":
            ctx.save_for_backward(hidden, head, bias, targets, top, lse, miss)
        return F.logsigmoid(target_z - rest).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        grad = grad[:, None]
        if ctx.taken == "frozen":
            (slope,) = ctx.saved_tensors
            return (grad * slope).to(slope.dtype), None, None, None, None, None
        return *_backward(ctx, -grad), None, None, None


def _backward(ctx, scale: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, head and bias; scale [N, 1] is -dL/dlogp.

    dL/dz = scale * probs, where probs holds -(1 - p) in the target's cell.
    """
    hidden, head, bias, targets, *saved = ctx.saved_tensors
    need_hidden, need_head, need_bias = ctx.needs_input_grad[:3]
    blocks = _Blocks(hidden, head, bias, ctx.block)
    product = torch.zeros(hidden.shape, **blocks.like) if need_hidden else None
    grad_head = torch.empty_like(head) if need_head else None
    grad_bias = torch.empty_like(bias) if need_bias else None
    # Scaling the narrow [N, D] side spares a pass over the [N, block] side.
    scaled = (scale * hidden).to(blocks.narrow)
    for start in range(0, head.shape[0], ctx.block):
        probs = saved[0] if ctx.taken == "kept" else _probs(blocks, start, targets, *saved)
        columns = slice(start, start + probs.shape[1])
        if need_hidden:
            blocks.add_product(product, probs, start)
        if need_head:
            grad_head[columns].copy_(probs.T @ scaled)
        if need_bias:
            grad_bias[columns].copy_((probs.T @ scale.to(probs.dtype)).squeeze(1))
    grad_hidden = product.mul_(scale).to(hidden.dtype) if need_hidden else None
    return grad_hidden, grad_head, grad_bias


def _probs(
    blocks: _Blocks, start: int, targets: Tensor, top: Tensor, lse: Tensor, miss: Tensor
) -> Tensor:
    """[N, block] probabilities in the matmul's dtype; -(1 - p) in the target's cell."""
    probs = blocks.logits(start).sub_(top).sub_(lse).exp_()
    inside, cell = _cells(targets, start, probs.shape[1])
    probs.scatter_(1, cell, torch.where(inside, -miss, probs.gather(1, cell)))
    return probs.to(blocks.narrow)


def _cells(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """[N, 1]: whether a row's target is in this block, and a cell of the block for each row."""
    cell = targets[:, None] - start
    return (cell >= 0) & (cell < width), cell.clamp(0, width - 1)


class _Blocks:
    """The matmuls with the head, block by block of the vocabulary, in one [N, block] workspace."""

    def __init__(self, hidden: Tensor, head: Tensor, bias: Tensor | None, block: int) -> None:
        self.wide, self.narrow = _wide(hidden.dtype), matmul_dtype(hidden)
        self.like = {"dtype": self.wide, "device": hidden.device}
        self.hidden = hidden.to(self.narrow)
        self.head, self.bias, self.block = head, bias, min(block, head.shape[0])
        self._workspace = torch.empty(0, **self.like)

    def rows(self, start: int) -> Tensor:
        return self.head[start : start + self.block].to(self.narrow)

    def logits(self, start: int) -> Tensor:
        """[N, block] in the wide dtype; overwritten by the next call."""
        rows = self.rows(start)
        shape = (self.hidden.shape[0], rows.shape[0])
        if not self._workspace.numel():
            self._workspace = torch.empty(shape[0] * self.block, **self.like)
        z = self._workspace[: shape[0] * shape[1]].view(shape)
        if self.wide == self.narrow:
            torch.mm(self.hidden, rows.T, out=z)
        else:
            z.copy_(self.hidden @ rows.T)
        return z if self.bias is None else z.add_(self.bias[start : start + self.block])

    def add_product(self, out: Tensor, probs: Tensor, start: int) -> None:
        """out [N, D] += probs [N, block] @ head's block."""
        if self.wide == self.narrow:
            out.addmm_(probs, self.rows(start))
        else:
            out.add_(probs.to(self.narrow) @ self.rows(start))


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the matmuls: that of `hidden`, but fp32 for half precision on an older CPU.

    Without AVX-512 PyTorch's half-precision matmul is slower than fp32 (AMD Zen 3, torch 2.13: 10
    against 45 GFLOP/s), while widening a block of the head costs one pass over it.
    """
    on_cpu = hidden.device.type == "cpu"
    if on_cpu and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return _wide(hidden.dtype)
    return hidden.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logit_bytes(hidden: Tensor) -> int:
    """Bytes of a logit while its block is worked on: wide, and the matmul's own if they differ."""
    wide, narrow = _wide(hidden.dtype), matmul_dtype(hidden)
    return wide.itemsize + (0 if wide == narrow else narrow.itemsize)
