"""The shape of a decoder, read from a Hugging Face `config.json` of the Llama, Mistral, Qwen2 or
Qwen3 family.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from srlm_fast.records import InputError

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


class ModelError(InputError):
    """Weights, configuration or tokenizer cannot be used. One line: where, what was found, what was
    wanted.
    """


@dataclass(frozen=True)
class ModelConfig:
    """What the decoder needs to know. `hf` is the dictionary it was read from, kept for saving."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    windows: tuple[int | None, ...] = ()  # attention window of each layer in tokens; None is full
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    num_labels: int = 0  # scores of a classification head, which stands in the place of the LM head
    hf: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.windows:
            object.__setattr__(self, "windows", (None,) * self.num_layers)
        if self.num_heads % self.num_kv_heads:
            raise ModelError(
                f"config.json: num_attention_heads {self.num_heads} is not a multiple of "
                f"num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ModelError(f"config.json: head_dim {self.head_dim}, wanted an even number")

    @classmethod
    def from_hf(cls, hf: dict[str, Any], where: str = "config.json") -> ModelConfig:
        """Read the dictionary of a `config.json`. Raises ModelError naming the field."""
        family = hf.get("model_type")
        if family not in FAMILIES:
            raise ModelError(
                f"{where}: model_type {family!r} is not supported; wanted one of "
                + ", ".join(sorted(FAMILIES))
            )
        sizes = {name: _size(hf, name, where) for name in _SIZES}
        num_heads = sizes["num_attention_heads"]
        if hf.get("hidden_act", "silu") not in ("silu", "swish"):
            raise ModelError(f"{where}: hidden_act is {hf['hidden_act']!r}; wanted 'silu'")
        rope_theta, rope_scaling = _rope(hf, where)
        return cls(
            family=family,
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            intermediate_size=sizes["intermediate_size"],
            num_layers=sizes["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=_size(hf, "num_key_value_heads", where, num_heads),
            head_dim=_size(hf, "head_dim", where, max(1, sizes["hidden_size"] // num_heads)),
            rms_norm_eps=_number(hf, "rms_norm_eps", where, 1e-6),
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            windows=_windows(hf, family, sizes["num_hidden_layers"], where),
            qkv_bias=family == "qwen2" or bool(hf.get("attention_bias", False)),
            o_bias=family in ("llama", "qwen3") and bool(hf.get("attention_bias", False)),
            mlp_bias=family == "llama" and bool(hf.get("mlp_bias", False)),
            qk_norm=family == "qwen3",
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
            max_position_embeddings=_size(hf, "max_position_embeddings", where, 2048),
            bos_token_id=hf.get("bos_token_id"),
            eos_token_ids=token_ids(hf.get("eos_token_id"), where),
            hf=dict(hf),
        )

    def to_hf(self) -> dict[str, Any]:
        """The dictionary for `config.json`: the one that was read, or a complete new one."""
        return dict(self.hf) if self.hf else _new_hf(self)

    def num_parameters(self) -> int:
        """Number of stored weights; a tied head counts once."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        layer += self.head_dim * (self.num_heads + 2 * self.num_kv_heads) * self.qkv_bias
        layer += self.hidden_size * self.o_bias + 2 * self.head_dim * self.qk_norm
        layer += (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        lm_head = not self.tie_word_embeddings and not self.num_labels
        head_rows = self.vocab_size * (1 + lm_head) + self.num_labels
        return self.num_layers * layer + (head_rows + 1) * self.hidden_size

    def replace(self, **changes: Any) -> ModelConfig:
        return dataclasses.replace(self, **changes)


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def _size(hf: dict[str, Any], name: str, where: str, default: int | None = None) -> int:
    value = hf.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        found = "missing" if value is None else repr(value)
        raise ModelError(f"{where}: {name} is {found}; wanted a positive integer")
    return value


def _number(hf: dict[str, Any], name: str, where: str, default: float) -> float:
    value = hf.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ModelError(f"{where}: {name} is {value!r}; wanted a number above 0")
    return float(value)


def token_ids(value: Any, where: str) -> tuple[int, ...]:
    """`eos_token_id` as it stands in a file: none, one id or several. Raises ModelError."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and i >= 0 for i in ids):
        raise ModelError(f"{where}: eos_token_id is {value!r}; wanted an id or a list of ids")
    return tuple(ids)


def _rope(hf: dict[str, Any], where: str) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling) from either spelling: `rope_parameters`, or `rope_theta` with
    `rope_scaling`.
    """
    given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ModelError(f"{where}: rope scaling is {given!r}; wanted an object")
    theta = _number({"rope_theta": hf.get("rope_theta", 10000.0)} | given, "rope_theta", where, 0.0)
    scaling = {name: value for name, value in given.items() if name != "rope_theta"}
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        if name in scaling:
            _number(scaling, name, where, 1.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ModelError(
            f"{where}: rope scaling {kind!r} is not supported; "
            "wanted default, linear, llama3 or yarn"
        )
    scaling["rope_type"] = kind
    return theta, None if kind == "default" else scaling


def _windows(
    hf: dict[str, Any], family: str, num_layers: int, where: str
) -> tuple[int | None, ...]:
    """The attention window of each layer, by the rules of each family's configuration."""
    kinds = hf.get("layer_types") or ["full_attention"] * num_layers
    if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise ModelError(
            f"{where}: layer_types is {kinds!r}; wanted sliding_attention or full_attention "
            f"for each of {num_layers} layers"
        )
    window = hf.get("sliding_window")
    if window is not None:
        window = _size(hf, "sliding_window", where)
    if family == "llama" or not window:
        return (None,) * num_layers
    if family in ("qwen2", "qwen3") and not hf.get("use_sliding_window", False):
        return (None,) * num_layers
    kinds = hf.get("layer_types")
    if not kinds:
        first = hf.get("max_window_layers", 28) if family.startswith("qwen") else 0
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _new_hf(config: ModelConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    hf: dict[str, Any] = {
        "architectures": [FAMILIES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope | (config.rope_scaling or {}),
        "rope_scaling": config.rope_scaling,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_bias": config.qkv_bias and config.family != "qwen2",
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
    }
    if len(config.eos_token_ids) == 1:
        hf["eos_token_id"] = config.eos_token_ids[0]
    if any(config.windows):
        hf["sliding_window"] = next(window for window in config.windows if window)
        hf["layer_types"] = ["sliding_attention" if w else "full_attention" for w in config.windows]
        hf["use_sliding_window"] = True
    elif config.family == "mistral":
        hf["sliding_window"] = None
    return hf
