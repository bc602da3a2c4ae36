"""The trainer: packed tokens in, the same weight tensors changed in place, a report out."""

from .checkpoint import CheckpointError, remove_checkpoint
from .config import DpoConfig, RewardConfig, SftConfig, TrainConfig
from .dpo import TokenPair, pair_logps, train_dpo
from .report import Evaluation, StepReport, TrainReport
from .reward import RewardPair, pair_accuracy, train_reward_model
from .sft import SftRow, row_logps, train_sft
from .trainer import TrainingInterrupted

__all__ = [
    "CheckpointError",
    "DpoConfig",
    "Evaluation",
    "RewardConfig",
    "RewardPair",
    "SftConfig",
    "SftRow",
    "StepReport",
    "TokenPair",
    "TrainConfig",
    "TrainReport",
    "TrainingInterrupted",
    "pair_accuracy",
    "pair_logps",
    "remove_checkpoint",
    "row_logps",
    "train_dpo",
    "train_reward_model",
    "train_sft",
]
