"""The numbers of the embedded default: what suits a model of a million weights, not the paper's."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TinySettings:
    """Sizes of the seeds and settings of each stage of the loop for `--model tiny`."""

    num_ift: int = 256
    num_eft: int = 384
    num_eft_eval: int = 120
    num_eft_answers: int = 4  # of each
    sft_learning_rate: float = 1e-3
    sft_epochs: int = 2
    sft_batch_rows: int = 16
    num_prompts: int = 512
    rouge_threshold: float = 0.9
    num_candidates: int = 4
    temperature: float = 1.0
    top_p: float = 0.9
    max_tokens: int = 48
    num_judgements: int = 3
    judge_temperature: float = 0.7
    judge_max_tokens: int = 64
    dpo_learning_rate: float = 1e-4
    dpo_beta: float = 0.1
    dpo_epochs: int = 1
    dpo_batch_pairs: int = 16
    num_held_out: int = 400
    num_eval_samples: int = 4


SETTINGS = TinySettings()
