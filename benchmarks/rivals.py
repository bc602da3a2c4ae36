"""Other ways to the log-probs of given tokens from hidden states and a head, one signature.

A rival takes `head_cases.Inputs` and returns what its `computes` says, differentiable:

    ""      log-probs [T], 0 in ignored rows; the loss is their sum weighted by `upstream`
    "sum"   the scalar -sum of log-probs: no gradient per row can reach it
    "dpo"   the mean sigmoid DPO loss of the pairs

Their packages are optional: `reason` says why one cannot run here. Eager, F.cross_entropy, TRL's
selective log-softmax and Liger pass ignored rows through the matmul; the others leave them out.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import installed, one_line
from benchmarks.head_cases import BETA, IGNORED, Inputs

Forward = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Rival:
    """load() imports the package and returns the function, or raises.

    package: the distribution; module: what must be there to import. compiles: its first call waits
    for torch.compile.
    """

    name: str
    package: str
    module: str
    load: Callable[[], Forward]
    computes: str = ""
    needs_gpu: bool = False
    compiles: bool = False

    @property
    def version(self) -> str:
        return f"{self.package} {installed(self.package)}"

    def reason(self, device: str) -> str | None:
        """Why it cannot run here; None if it can."""
        if importlib.util.find_spec(self.module) is None:
            return "not installed"
        if self.needs_gpu and device != "cuda":
            return "needs a GPU"
        try:
            if self.compiles:
                allow_recompiling()
            self.load()
        except Exception as error:  # a broken package is a reason, not a fault of the benchmark
            return f"cannot be loaded: {one_line(error)}"
        return None


def allow_recompiling() -> None:
    """After eight shapes torch.compile would silently run eagerly, and be timed as that."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64


def eager_logprobs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """What one writes first: all logits, widened, log-softmax, gather."""
    counts = targets != IGNORED
    logp = F.linear(hidden, head).float().log_softmax(-1)
    index = torch.where(counts, targets, 0)
    return torch.where(counts, logp.gather(1, index[:, None]).squeeze(1), 0.0)


def _eager() -> Forward:
    return lambda x: eager_logprobs(x.hidden, x.head, x.targets)


def _compiled() -> Forward:
    function = torch.compile(eager_logprobs)
    return lambda x: function(x.hidden, x.head, x.targets)


def _cross_entropy() -> Forward:
    def forward(x: Inputs) -> Tensor:
        logits = F.linear(x.hidden, x.head).float()
        return -F.cross_entropy(logits, x.targets, ignore_index=IGNORED, reduction="none")

    return forward


def _eager_dpo() -> Forward:
    """The reference's head is run in every step, as where nothing is kept between steps."""

    def forward(x: Inputs) -> Tensor:
        with torch.no_grad():
            ref = x.sequences(eager_logprobs(x.ref_hidden, x.head, x.targets)).sum(1)
        sums = x.sequences(eager_logprobs(x.hidden, x.head, x.targets)).sum(1)
        margin = (sums - ref).chunk(2)
        return -F.logsigmoid(BETA * (margin[0] - margin[1])).mean()

    return forward


def _trl_selective() -> Forward:
    from trl.trainer.utils import selective_log_softmax

    def forward(x: Inputs) -> Tensor:
        counts = x.targets != IGNORED
        index = torch.where(counts, x.targets, 0)
        logits = F.linear(x.hidden, x.head)
        return torch.where(counts, selective_log_softmax(logits[None], index[None])[0], 0.0)

    return forward


def _trl_chunked() -> Forward:
    """The function under TRL's fused head, called as its patched forward does."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer import utils

    def forward(x: Inputs) -> Tensor:
        counts = x.targets != IGNORED
        columns = utils._CHUNKED_LOGPROB_CHUNK_SIZE
        call = (x.head, None, x.targets[counts], 1.0, columns, None, 1.0, ())
        logp = ChunkedLogProbFunction.apply(x.hidden[counts], *call)[0]
        return logp.new_zeros(counts.shape).masked_scatter(counts, logp)

    return forward


def _cce(impl: str) -> Callable[[], Forward]:
    """impl: "cce", "exact" (nothing filtered) or "torch_compile".

    Releases without the preset "cce_exact" (25.1) have no fp32 sums, only the filter to switch off.
    """

    def load() -> Forward:
        from cut_cross_entropy import linear_cross_entropy

        options: dict = {"impl": impl}
        if impl == "exact":
            preset = "accum_e_fp32" in inspect.signature(linear_cross_entropy).parameters
            options = {"impl": "cce_exact"} if preset else {"impl": "cce", "filter_eps": None}
        options |= {"ignore_index": IGNORED, "reduction": "none"}
        return lambda x: -linear_cross_entropy(x.hidden, x.head, x.targets, **options)

    return load


def _liger_ce(reduction: str) -> Callable[[], Forward]:
    """reduction: "sum", gradients made in the forward pass, or "none", which makes logits twice."""

    def load() -> Forward:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        function = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction=reduction)
        sign = -1.0 if reduction == "none" else 1.0

        def forward(x: Inputs) -> Tensor:
            loss = function(x.head, x.hidden, x.targets)
            return loss * sign if reduction == "none" else loss

        return forward

    return load


def _liger_dpo(compiled: bool) -> Callable[[], Forward]:
    """Wants the reference's hidden states and head in every step, and takes no log-probs."""

    def load() -> Forward:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        function = LigerFusedLinearDPOLoss(ignore_index=IGNORED, beta=BETA, compiled=compiled)

        def forward(x: Inputs) -> Tensor:
            policy, targets = x.sequences(x.hidden), x.sequences(x.targets)
            ref = {"ref_input": x.sequences(x.ref_hidden), "ref_weight": x.head.detach()}
            return function(x.head, policy, targets, **ref)[0]

        return forward

    return load


def _quack() -> Forward:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    def forward(x: Inputs) -> Tensor:
        options = {"ignore_index": IGNORED, "reduction": "sum"}
        return chunked_linear_cross_entropy(x.hidden, x.head, x.targets, **options)

    return forward


def _torch_native(chunked: bool) -> Callable[[], Forward]:
    def load() -> Forward:
        function = getattr(F, "linear_cross_entropy", None)
        if function is None:
            raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
        more = {}
        if chunked:
            more["options"] = torch.nn.LinearCrossEntropyOptions()
        return lambda x: (
            -function(x.hidden, x.head, x.targets, ignore_index=IGNORED, reduction="none", **more)
        )

    return load


CCE, LIGER = ("cut-cross-entropy", "cut_cross_entropy"), ("liger-kernel", "liger_kernel")
TORCH, TRL = ("torch", "torch"), ("trl", "trl")
RIVALS = (
    Rival("eager", *TORCH, _eager),
    Rival("torch.compile", *TORCH, _compiled, compiles=True),
    Rival("F.cross_entropy", *TORCH, _cross_entropy),
    Rival("F.linear_cross_entropy", *TORCH, _torch_native(False)),
    Rival("F.linear_cross_entropy chunked", *TORCH, _torch_native(True)),
    Rival("TRL selective_log_softmax", *TRL, _trl_selective),
    Rival("TRL chunked", *TRL, _trl_chunked),
    Rival("CCE", *CCE, _cce("cce"), needs_gpu=True),
    Rival("CCE exact", *CCE, _cce("exact"), needs_gpu=True),
    Rival("CCE torch_compile", *CCE, _cce("torch_compile"), compiles=True),
    Rival("Liger FLCE sum", *LIGER, _liger_ce("sum"), computes="sum", needs_gpu=True),
    Rival("Liger FLCE none", *LIGER, _liger_ce("none"), needs_gpu=True),
    Rival("quack", "quack-kernels", "quack", _quack, computes="sum", needs_gpu=True),
    Rival("eager DPO", *TORCH, _eager_dpo, computes="dpo"),
    Rival("Liger DPO", *LIGER, _liger_dpo(True), computes="dpo", compiles=True),
    Rival("Liger DPO uncompiled", *LIGER, _liger_dpo(False), computes="dpo"),
)
