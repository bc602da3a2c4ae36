"""The models that the sampler's benchmark runs: shapes with random weights, the same every time.

The head is scaled so that the next token at temperature 0.7 has an entropy of about 3.9 nats, as a
trained model's would be: top-p keeps a handful of tokens and not half of the vocabulary.

In fp8 the layers' matrices are fp8 with a scale for each row, all else is bf16 (model/fp8.py).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from srlm_fast.kernels import quantise_rows_reference
from srlm_fast.model import PRESETS, Fp8Linear, Model, ModelConfig, random_fp8_model
from srlm_fast.model.decoder import empty_model
from srlm_fast.model.weights import places

ENTROPY, TEMPERATURE, TOP_P = 3.9, 0.7, 0.9
FP8 = torch.float8_e4m3fn
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "fp8": FP8}


def _llama(vocab: int, width: int, ffn: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    )


MODELS: dict[str, ModelConfig] = {
    "nano": _llama(300, 32, 64, 2, 2, 1),  # for the benchmark's own tests
    "tiny": _llama(4096, 256, 512, 6, 4, 2),
    "small": _llama(32000, 768, 2048, 12, 12, 4),
    "llama-3-8b": PRESETS["llama-3-8b"].config,
    "llama-2-70b": PRESETS["llama-2-70b"].config,
}


def head_std(config: ModelConfig) -> float:
    """What gives the logits the entropy wanted; a hidden row after the final norm is sqrt(D) long.

    The logits of a random head are Gaussian: their quantiles stand for them.
    """
    grid = (torch.arange(config.vocab_size, dtype=torch.float64) + 0.5) / config.vocab_size
    quantiles = torch.special.ndtri(grid)

    def entropy(spread: float) -> float:
        logprobs = (spread * quantiles).log_softmax(0)
        return -float((logprobs.exp() * logprobs).sum())

    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle) > ENTROPY else (low, middle)
    return TEMPERATURE * low / math.sqrt(config.hidden_size)


@torch.no_grad()
def make_model(config: ModelConfig, device: str, dtype: torch.dtype) -> Model:
    """Weights drawn where they stay. On a CPU in fp32 and then rounded, so that every dtype has the
    same ones; on a GPU in place, as there is no room for a second copy.
    """
    if dtype == FP8:
        model = random_fp8_model(config, device)
        model.head.normal_(0.0, head_std(config))
        return model
    model = empty_model(config, device, torch.float32 if device == "cpu" else dtype)
    draw = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.fill_(1.0)
        else:
            std = head_std(config) if name == "lm_head.weight" else config.hidden_size**-0.5
            weight.normal_(0.0, std, generator=draw)
    return model if device != "cpu" or dtype == torch.float32 else rounded(model, dtype)


def rounded(model: Model, dtype: torch.dtype) -> Model:
    """The same model in another dtype; rotary frequencies stay in fp32."""
    model.to(dtype)
    model.set_rope()
    return model


def hf_tensors(model: Model) -> dict[str, Tensor]:
    """Views of the weights under the names that transformers has for them; of fp8 what they stand
    for, in fp32.
    """
    parameters = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            parameters[f"{name}.weight"] = module.weight.float() * module.scale
    return {
        name: parameters[place.parameter].detach()[place.start : place.stop]
        for name, place in places(model.config).items()
    }


def hf_model(model: Model, dtype: torch.dtype | None = None) -> Any:
    """The model in transformers, on the very same weights; with a dtype, on a copy in that."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.for_model(**(model.config.to_hf() | {"eos_token_id": None}))
    dtype = model.dtype if dtype is None else dtype
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in hf_tensors(model).items()}
    theirs.load_state_dict(tensors, assign=True)
    # What is computed from the configuration and not kept with the weights.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config).to(model.device)
    theirs.generation_config.eos_token_id = theirs.generation_config.bos_token_id = None
    return theirs.eval().requires_grad_(False)


def round_activations(theirs: Any) -> None:
    """From now on its layers' matmuls see rows as they are in fp8."""

    def rounded_rows(_: Any, inputs: tuple[Tensor]) -> Tensor:
        (x,) = inputs
        x8, scale = quantise_rows_reference(x.flatten(0, -2))
        return (x8.float() * scale).to(x.dtype).view_as(x)

    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(rounded_rows)
