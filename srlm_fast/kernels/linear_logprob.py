"""Log-probabilities of given tokens under softmax(hidden @ head.T + bias), without a [T, V] tensor.

    x_t = hidden_t @ head.T + bias
    z_t = softcap tanh(x_t / softcap) / temperature          (softcap optional)
    lse_t = log sum_j e^(z_tj)         logp_t = z_ty - lse_t,  y = targets_t
    entropy_t = lse_t - sum_j p_tj z_tj,                       p_tj = e^(z_tj - lse_t)

T rows, D width, V vocabulary. Results in nats, fp32 (fp64 for fp64 input). Rows whose target is
`ignore_index` give 0 and never reach a matmul; N rows are left. With g, g', g'' = dL/dlogp,
dL/dlse, dL/dentropy:

    dL/dx_tj = (g_t (1[j = y] - p_tj) + g'_t p_tj - g''_t p_tj (log p_tj + entropy_t)) dz/dx
    dL/dhidden = dL/dx @ head        dL/dhead = dL/dx^T @ hidden        dL/dbias = sum_t dL/dx_t

The matmuls are the vendor's, between them stands one pass over a block of logits in place
(`logit_rows`, which also says how 1 - p is kept from cancelling). The route
(`linear_logprob_route`) follows from what needs a gradient and from `workspace_bytes`:

    score      nothing needs one    2 N D V FLOPs   sums only
    frozen     hidden only          4 N D V         exponentials E of R rows and C columns; E @ head
                                                    gives dlogp/dhidden in the forward pass, and
                                                    backward only scales its rows: [T, D] is kept
    trainable  head (or bias)       6..8 N D V      E of `kept` columns, all N rows, is kept for the
                                                    backward pass; other columns are made again

    extra bytes beside gradients and some [N, D]:    R C b             (score, frozen)
                                                     12 R V / 128      (score, fused)
                                                     N (kept + C) b    (trainable)

R rows and C columns of a block, b bytes of the matmul's dtype (without Triton and the compiled
extension b + 2 w, w bytes of the statistics). dL/dhead is summed over all rows inside one matmul
per block of columns and rounded to the head's dtype once; dL/dhidden is summed over blocks in fp32.
On a GPU a head of D <= 2048 in half precision, and scoring at every D, take the matmul of
`head_softmax` with the softmax in its epilogue.

No atomics anywhere: the same call gives the same bits. With `batch_invariant` a row's log-prob and
its dL/dhidden have the same bits in any company: every matmul that makes rows is cut into pieces of
one fixed number of rows, the last filled up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import jit
from .contracts import check_number, check_tensor, once_differentiable
from .head_blocks import Blocks, Call, Gradients
from .logit_rows import (
    ENTROPY,
    LOGP,
    LSE,
    RowState,
    Transform,
    finish,
    scale_rows,
    seal_,
    wide,
)
from .logprob_route import Route, choose_route
from .pages import Pages

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LogprobOutput(NamedTuple):
    """All [T], nats, 0 in ignored rows, differentiable; None where not asked for."""

    logprobs: Tensor
    lse: Tensor | None
    entropy: Tensor | None


def linear_logprob_reference(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int | None = -100,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_lse: bool = False,
    return_entropy: bool = False,
) -> Tensor | LogprobOutput:
    """The same in eager PyTorch with all logits in memory."""
    logits = torch.nn.functional.linear(hidden, head, bias).to(wide(hidden.dtype))
    logits, _ = Transform(softcap, temperature)(logits)
    counts = torch.ones_like(targets, dtype=torch.bool)
    if ignore_index is not None:
        counts = targets != ignore_index
    log_p, lse = logits.log_softmax(-1), logits.logsumexp(-1)
    index = torch.where(counts, targets, 0).long()
    logp = log_p.gather(1, index[:, None]).squeeze(1)
    entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(1)
    logp, lse, entropy = (torch.where(counts, value, 0.0) for value in (logp, lse, entropy))
    return _output(logp, lse, entropy, return_lse, return_entropy)


@jit.on_its_device
def linear_logprob(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int | None = -100,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    return_lse: bool = False,
    return_entropy: bool = False,
    workspace_bytes: int | None = None,
    overwrite_hidden: bool = False,
    batch_invariant: bool = False,
) -> Tensor | LogprobOutput:
    """Log-probs [T] of `targets`, nats, fp32 (fp64 for fp64 input); 0 where the target is ignored.

    hidden [T, D] fp32, bf16, fp16 or fp64; head [V, D] and bias [V] of the same dtype and device;
    targets [T] int64 or int32, each in 0..V-1 or `ignore_index`. No rows, or none that counts:
    zeros, and zero gradients. Differentiable once, for hidden, head and bias. With `return_lse` or
    `return_entropy` a LogprobOutput, its fields differentiable too; their gradients make the logits
    again.

    ignore_index None: every row counts; then a GPU is not waited for, and a target out of range
    gives NaN instead of an error. Otherwise it is waited for once, to count rows and check targets.
    workspace_bytes: bytes for blocks of logits, as in the formula above; MIN_COLUMNS columns of a
    block are made whatever it says. Default: 4 MiB on a CPU, 256 MiB on a GPU; with a trainable
    head four times that, or 5 V D if it is more, which is less than summing the head's gradient in
    fp32 and rounding it would take.
    overwrite_hidden: with a frozen head, dlogp/dhidden is written over `hidden`, whose values are
    lost: for hidden states that nobody reads again. In-place autograd rules apply: RuntimeError in
    backward where another operation has saved them.
    batch_invariant: see above; costs the rows that fill up the last piece of a block, that piece's
    memory, and with a trainable head all that could have been kept.

    Raises ValueError, naming the argument: wrong shapes, dtypes or devices; a target out of range;
    a DTensor; on a GPU a head whose rows are not contiguous; temperature or softcap not above 0;
    overwrite_hidden with a trainable head, a hidden that is a leaf or not contiguous, or return_lse
    or return_entropy. RuntimeError in a backward pass with create_graph=True.
    """
    transform = Transform(softcap, temperature)
    _check(hidden, head, bias, transform, workspace_bytes)
    integers = (torch.int64, torch.int32)
    check_tensor("targets", targets, (hidden.shape[0],), integers, hidden.device)
    if ignore_index is not None:
        check_number("ignore_index", ignore_index, "an integer, or None", lambda n: True, True)
    counts, rows = _counted(targets, ignore_index, head.shape[0])
    num_rows = targets.shape[0] if rows is None else rows.shape[0]
    keep_inputs = return_lse or return_entropy
    taken = choose_route(
        hidden, head, bias, num_rows, workspace_bytes, batch_invariant, keep_inputs
    )
    call = Call(transform, taken, counts, rows, batch_invariant, return_entropy, overwrite_hidden)
    if overwrite_hidden:
        _check_overwrite(hidden, taken, keep_inputs)
    elif jit.runs_triton(hidden) and hidden.stride(1) != 1:
        hidden = hidden.contiguous()
    if bias is not None:
        bias = bias.contiguous()
    if taken.name == "score":
        # Detached, so that autograd does not keep a node that has nothing to give back.
        hidden, head, bias = hidden.detach(), head.detach(), None if bias is None else bias.detach()
    chosen = (targets if rows is None else targets.index_select(0, rows)).long().contiguous()
    values = _LinearLogprob.apply(hidden, head, bias, chosen, call, keep_inputs)
    if rows is not None:
        values = [v.new_zeros(targets.shape[0]).index_copy(0, rows, v) for v in values]
    return _output(*values, return_lse, return_entropy)


def _output(logp, lse, entropy, return_lse, return_entropy) -> Tensor | LogprobOutput:
    if not (return_lse or return_entropy):
        return logp
    return LogprobOutput(logp, lse if return_lse else None, entropy if return_entropy else None)


def linear_logprob_route(
    hidden: Tensor,
    head: Tensor,
    num_rows: int,
    bias: Tensor | None = None,
    *,
    workspace_bytes: int | None = None,
    batch_invariant: bool = False,
    return_lse: bool = False,
    return_entropy: bool = False,
) -> Route:
    """The route that `linear_logprob` takes for these inputs, of whose rows num_rows count.

    Raises ValueError as `linear_logprob` does, and on num_rows outside 0..T.
    """
    _check(hidden, head, bias, Transform(), workspace_bytes)
    wanted, num_tokens = f"an integer in 0..{hidden.shape[0]}", hidden.shape[0]
    check_number("num_rows", num_rows, wanted, lambda n: 0 <= n <= num_tokens, integer=True)
    keep_inputs = return_lse or return_entropy
    return choose_route(hidden, head, bias, num_rows, workspace_bytes, batch_invariant, keep_inputs)


class _LinearLogprob(torch.autograd.Function):
    """hidden [T, D], head [V, D], bias [V] or None, targets [N] int64 -> logp, lse, entropy [N]."""

    @staticmethod
    def forward(ctx, hidden, head, bias, targets, call, keep_inputs):
        ctx.set_materialize_grads(False)
        ctx.call, ctx.kept, slope = call, [], None
        if call.route.name == "trainable":
            facts, ctx.kept = _forward_by_columns(hidden, head, bias, targets, call)
        else:
            if call.route.name == "frozen":
                slope = _slope_buffer(hidden, call)
            facts = _forward_by_rows(hidden, head, bias, targets, call, slope)
        if slope is not None and not keep_inputs:
            ctx.save_for_backward(slope)
        elif call.route.name != "score":
            ctx.save_for_backward(slope, hidden, head, bias, targets, facts)
        return facts[LOGP].clone(), facts[LSE].clone(), facts[ENTROPY].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_lse, grad_entropy):
        if grad is None and grad_lse is None and grad_entropy is None:
            return (None,) * 6
        slope, *inputs = ctx.saved_tensors
        if slope is not None and grad_lse is None and grad_entropy is None:
            return _scaled(slope, grad, ctx.call), None, None, None, None, None
        facts, grads = inputs[-1], (grad, grad_lse, grad_entropy)
        zero = torch.zeros_like(facts[0])
        upstream = torch.stack([zero if g is None else g.to(zero) for g in grads])
        if ctx.call.route.name == "frozen":
            grad_hidden = _backward_by_rows(*inputs, upstream, ctx.call)
            return grad_hidden, None, None, None, None, None
        # Kept exponentials serve the gradient of logp only; the others make the logits again.
        for_logp = grad_lse is None and grad_entropy is None
        needs = ctx.needs_input_grad[:3]
        grads = _backward_by_columns(*inputs, upstream, ctx.call, ctx.kept, for_logp, needs)
        if not _graph_is_kept():
            ctx.kept = []  # autograd frees saved tensors only
        return *grads, None, None, None


def _forward_by_rows(hidden, head, bias, targets, call, slope) -> Tensor:
    """facts [7, N], and with `slope` [T, D] dlogp/dhidden there."""
    blocks, step = Blocks(head, bias, call), call.route.rows
    facts = torch.empty((7, targets.shape[0]), dtype=wide(hidden.dtype), device=hidden.device)
    for start in range(0, targets.shape[0], step):
        part = slice(start, start + step)
        h, y = _take(hidden, call.rows, part), targets[part]
        state, product = blocks.statistics(h, y, with_product=slope is not None)
        out = None
        if slope is not None:
            out = slope[part] if call.rows is None else torch.empty_like(h)
        facts[:, part] = finish(h, head, bias, y, state, call.transform, product, out)
        if slope is not None and call.rows is not None:
            slope.index_copy_(0, call.rows[part], out)
    if slope is not None and call.overwrite and call.counts is not None:
        slope.masked_fill_(~call.counts[:, None], 0.0)  # hidden states still, perhaps NaN
    return facts


def _slope_buffer(hidden: Tensor, call: Call) -> Tensor:
    """[T, D], zero in rows that do not count: new, or `hidden` itself."""
    if not call.overwrite:
        return torch.empty_like(hidden) if call.rows is None else torch.zeros_like(hidden)
    buffer = hidden.detach()
    torch.autograd.graph.increment_version(buffer)
    return buffer


def _scaled(slope: Tensor, grad: Tensor, call: Call) -> Tensor:
    """slope [T, D] times dL/dlogp [N] of its rows; in place when backward cannot come again."""
    if call.rows is not None:
        grad = grad.new_zeros(slope.shape[0]).index_copy(0, call.rows, grad)
    out = torch.empty_like(slope) if _graph_is_kept() else slope
    return scale_rows(slope, grad.contiguous(), out)


def _graph_is_kept() -> bool:
    """Whether the backward pass that runs may be followed by another (retain_graph)."""
    try:
        return bool(torch._C._autograd._get_current_graph_task_keep_graph())
    except AttributeError:  # not public: without it, memory for one more [T, D]
        return True


class _Kept(NamedTuple):
    """Exponentials [N, C] of the columns from `first` on; p = rate [N] times them."""

    first: int
    x: Tensor
    rate: Tensor
    pages: Pages | None

    def release(self) -> None:
        """Gives the memory back. The block must not be read again."""
        if self.pages is not None and self.x.is_contiguous():
            start = self.x.storage_offset()
            self.pages.release(start, start + self.x.numel())


def _forward_by_columns(hidden, head, bias, targets, call) -> tuple[Tensor, list]:
    """facts [7, N], and what is kept for the backward pass."""
    route, blocks, num_classes = call.route, Blocks(head, bias, call), head.shape[0]
    h = _take(hidden, call.rows, slice(None))
    if targets.shape[0] == 0:
        return torch.zeros((7, 0), dtype=wide(hidden.dtype), device=hidden.device), []
    if route.fused:
        state, kept = blocks.fused(h, targets, store=True)
    else:
        state = RowState.empty(targets.shape[0], hidden, call.with_entropy)
        kept = []
        pages = Pages(h.shape[0] * blocks.stride(route.kept), blocks.narrow, h.device)
        for first in range(0, route.kept, max(route.kept_columns, 1)):
            width = min(route.kept_columns, route.kept - first)
            x = blocks.view(pages.elements[h.shape[0] * first :], h.shape[0], width)
            blocks.exponentials_(x, h, targets, first, state)
            kept.append((first, x, state.top.clone(), pages))
        for first in range(route.kept, num_classes, max(route.columns, 1)):
            x = blocks.workspace(h, min(route.columns, num_classes - first))
            blocks.exponentials_(x, h, targets, first, state, store=False)
    facts = finish(h, head, bias, targets, state, call.transform)
    return facts, [
        _Kept(first, x, seal_(x, targets, first, top, facts), pages)
        for first, x, top, pages in kept
    ]


def _backward_by_columns(hidden, head, bias, targets, facts, upstream, call, kept, for_logp, needs):
    """Gradients of hidden [T, D], head and bias; `needs` says which."""
    num_classes, reached, keep_graph = head.shape[0], 0, _graph_is_kept()
    h = _take(hidden, call.rows, slice(None))
    into, own = Gradients(h, head, bias, call, needs), (targets, facts, upstream)
    if targets.shape[0] == 0:
        return into.zeros(hidden.shape[0])
    for block in kept:
        if not for_logp and keep_graph:
            break
        if for_logp:
            into.add_exponentials(block.first, block.x, -upstream[0] * block.rate)
        else:  # the memory of what is not needed
            into.add_logits(block.first, block.x.shape[1], *own, block.x)
        reached = block.first + block.x.shape[1]
        if not keep_graph:
            block.release()
    for first in range(reached, num_classes, call.route.columns):
        into.add_logits(first, min(call.route.columns, num_classes - first), *own)
    return into.results(hidden.shape[0])


def _backward_by_rows(hidden, head, bias, targets, facts, upstream, call) -> Tensor:
    """Gradient of hidden [T, D] with those of lse or entropy: the logits are made again."""
    out, step = torch.zeros_like(hidden), call.route.rows
    columns, num_classes = call.route.columns, head.shape[0]
    for start in range(0, targets.shape[0], step):
        part = slice(start, start + step)
        into = Gradients(_take(hidden, call.rows, part), head, bias, call, (True, False, False))
        own = (targets[part], facts[:, part].contiguous(), upstream[:, part].contiguous())
        for first in range(0, num_classes, columns):
            into.add_logits(first, min(columns, num_classes - first), *own)
        found = into.hidden()
        if call.rows is None:
            out[part] = found
        else:
            out.index_copy_(0, call.rows[part], found)
    return out


def _take(hidden: Tensor, rows: Tensor | None, part: slice) -> Tensor:
    """Those rows of `hidden` that count and stand at `part` among them."""
    return hidden[part] if rows is None else hidden.index_select(0, rows[part])


def _check(hidden, head, bias, transform: Transform, workspace_bytes) -> None:
    check_tensor("hidden", hidden, ("T", "D"), _FLOATS)
    like = ((hidden.dtype,), hidden.device)
    check_tensor("head", head, ("V", hidden.shape[1]), *like)
    if bias is not None:
        check_tensor("bias", bias, (head.shape[0],), *like)
    if head.shape[0] == 0:
        raise ValueError("head: no rows, wanted at least one")
    if jit.runs_triton(head) and head.stride(1) != 1:
        raise ValueError(f"head: strides {head.stride()}, wanted rows with columns side by side")
    if transform.softcap is not None:
        check_number("softcap", transform.softcap, "a number above 0, or None", _positive)
    check_number("temperature", transform.temperature, "a number above 0", _positive)
    if workspace_bytes is not None:
        wanted = "0 or more bytes, or None"
        check_number("workspace_bytes", workspace_bytes, wanted, lambda n: n >= 0, integer=True)


def _positive(x: float) -> bool:
    return 1e-30 < x < 1e30


def _check_overwrite(hidden: Tensor, route: Route, with_more: bool) -> None:
    if route.name != "frozen":
        raise ValueError(
            f"overwrite_hidden: this call takes the route {route.name!r}, wanted one where hidden "
            "needs a gradient and the head is frozen (not fp16)"
        )
    if hidden.is_leaf:
        raise ValueError(
            "overwrite_hidden: hidden is a leaf that needs a gradient, wanted a result"
        )
    if with_more:
        raise ValueError("overwrite_hidden: found return_lse or return_entropy, wanted neither")
    if not hidden.is_contiguous():
        raise ValueError(
            f"overwrite_hidden: hidden has strides {hidden.stride()}, wanted contiguous"
        )


def _counted(
    targets: Tensor, ignore_index: int | None, num_classes: int
) -> tuple[Tensor | None, Tensor | None]:
    """Which rows count, [T] bool and their indices [N]; None, None when all do. Checks the
    range.
    """
    if targets.numel() == 0 or (ignore_index is None and targets.is_cuda):
        return None, None
    counts = torch.ones_like(targets, dtype=torch.bool)
    if ignore_index is not None:
        counts = targets != ignore_index
    inside = torch.where(counts, targets, 0)
    # One transfer, so that a GPU is waited for once.
    number, low, high = torch.stack((counts.sum(), inside.amin(), inside.amax())).tolist()
    if low < 0 or high >= num_classes:
        wanted = f"0..{num_classes - 1}" + ("" if ignore_index is None else f" or {ignore_index}")
        raise ValueError(f"targets: {low if low < 0 else high}, wanted {wanted}")
    if number == targets.numel():
        return None, None
    rows = torch.argsort((~counts).to(torch.uint8), stable=True)[:number]
    return counts, rows
