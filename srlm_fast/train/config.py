"""What can be set about a training: fields shared by SFT and DPO, and their own."""

from __future__ import annotations

from dataclasses import dataclass

from srlm_fast.kernels.dpo_loss import LOSSES

SCHEDULES = ("linear", "cosine", "constant")
OPTIMIZERS = ("adamw", "adamw-bf16", "adamw-8bit")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Shared fields. Raises ValueError naming the field that is out of range."""

    learning_rate: float
    schedule: str = "cosine"  # down to learning_rate * final_fraction behind the last step
    final_fraction: float = 0.1
    warmup_steps: int = 0  # linear, from learning_rate / warmup_steps
    epochs: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0  # on matrices only
    max_grad_norm: float = 1.0
    dropout: float = 0.0  # on each block's two residual branches
    optimizer: str = "adamw"  # what its states are kept in: `optimizer.py`
    # fp32 copies for the optimizer where the model is in half precision; False: bf16 weights are
    # rounded at random instead. None: as the optimizer is made for, adamw with, the others without.
    master_weights: bool | None = None
    activation_checkpointing: bool = False  # each block is run again in the backward pass
    evaluate_every: int = 0  # steps between evaluations on held-out data; 0: none
    patience: int = 0  # evaluations without a new best that end the training; 0: none do
    micro_batch_tokens: int = 16384  # memory, not mathematics: the loss does not depend on it
    share_prompts: bool = True  # speed, not mathematics: what a prompt's responses share runs once
    checkpoint_seconds: float = 300.0

    def __post_init__(self) -> None:
        ranges = {
            "learning_rate": (self.learning_rate > 0, "above 0"),
            "schedule": (self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "final_fraction": (0 <= self.final_fraction <= 1, "0..1"),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers, 0 <= beta < 1"),
            "eps": (self.eps > 0, "above 0"),
            "weight_decay": (self.weight_decay >= 0, "0 or more"),
            "max_grad_norm": (self.max_grad_norm > 0, "above 0"),
            "dropout": (0 <= self.dropout < 1, "0 <= dropout < 1"),
            "optimizer": (self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}"),
            "evaluate_every": (self.evaluate_every >= 0, "0 or more"),
            "patience": (self.patience >= 0, "0 or more"),
            "micro_batch_tokens": (self.micro_batch_tokens >= 1, "1 or more"),
            "checkpoint_seconds": (self.checkpoint_seconds >= 0, "0 or more"),
        }
        self._refuse(ranges)

    def _refuse(self, ranges: dict[str, tuple[bool, str]]) -> None:
        for name, (fits, wanted) in ranges.items():
            if not fits:
                raise ValueError(f"{name}: {getattr(self, name)!r}, wanted {wanted}")


@dataclass(frozen=True, kw_only=True)
class SftConfig(TrainConfig):
    """Supervised fine-tuning; defaults are the paper's (arXiv 2401.10020, section 3.1.3)."""

    learning_rate: float = 5.5e-6
    final_fraction: float = 0.2
    batch_rows: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse({"batch_rows": (self.batch_rows >= 1, "1 or more")})


@dataclass(frozen=True, kw_only=True)
class DpoConfig(TrainConfig):
    """Preference training; defaults are the paper's (arXiv 2401.10020, section 3.1.3).

    loss, beta, label_smoothing, gamma and nll_weight as in `srlm_fast.kernels.dpo_loss`; with
    `length_normalized` log-ratios are means over response tokens, the form of IPO that its authors
    use. SimPO wants other sizes than the rest: a beta of 2 and more, a gamma around half of it.
    """

    learning_rate: float = 1e-6
    loss: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalized: bool = False  # simpo always is
    gamma: float = 0.0  # simpo's target margin; the others have none
    nll_weight: float = 0.0  # of the mean NLL of the chosen response, added to each pair's loss
    batch_pairs: int = 16
    real_weight: float = 1.0  # of the mean NLL of each real row, where a step has some

    def __post_init__(self) -> None:
        super().__post_init__()
        ranges = {
            "loss": (self.loss in LOSSES, f"one of {', '.join(LOSSES)}"),
            "beta": (0 < self.beta < float("inf"), "above 0"),
            "label_smoothing": (0 <= self.label_smoothing < 0.5, "0 <= e < 0.5"),
            "gamma": (
                self.gamma == 0 or (self.loss == "simpo" and 0 < self.gamma < float("inf")),
                f"0: {self.loss} has no target margin, simpo has",
            ),
            "nll_weight": (0 <= self.nll_weight < float("inf"), "0 or more"),
            "batch_pairs": (self.batch_pairs >= 1, "1 or more"),
            "real_weight": (0 <= self.real_weight < float("inf"), "0 or more"),
        }
        self._refuse(ranges)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainConfig):
    """Training of a reward model; the learning rate is that of arXiv 2203.02155, appendix C.2."""

    learning_rate: float = 9e-6
    batch_pairs: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse({"batch_pairs": (self.batch_pairs >= 1, "1 or more")})
