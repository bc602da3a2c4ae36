"""What a model is made of, counted from its configuration without its weights.

D width, H heads, G key/value heads, K head width, F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

from pathlib import Path

from srlm_fast.config import TINY, Config
from srlm_fast.model import PRESETS, ModelConfig, ModelError, find_folder, read_config
from srlm_fast.model.weights import weight_files
from srlm_fast.records import InputError, read_object


def model_config(name: str) -> ModelConfig:
    """The configuration of a folder, a preset or a hub id, without fetching any weights."""
    preset = PRESETS.get(name.lower())
    folder = local_folder(name)
    if folder is None and preset is not None:
        return preset.config
    return read_config(folder or find_folder(name))


def own_config(config: Config) -> ModelConfig:
    """Of the run's model. Raises InputError naming the option."""
    try:
        return model_config(config.model)
    except ModelError as error:
        raise InputError(f"--model {error}") from None


def prompt_model_config(config: Config) -> ModelConfig | None:
    """Of another model that makes prompts; None where there is none, or one that would have to be
    downloaded first and is no preset. Raises InputError for a name that can be no hub id.
    """
    name = config.other_prompt_model
    if name is None:
        return None
    if name.count("/") == 1 and local_folder(name) is None:
        return None
    try:
        return model_config(name)
    except ModelError as error:
        raise InputError(f"--prompt-model {error}") from None


def local_folder(name: str) -> Path | None:
    """Where the model lies on this machine; None when it would have to be downloaded."""
    if name == TINY or Path(name).expanduser().exists():
        return find_folder(name)
    preset = PRESETS.get(name.lower())
    hub_id = (preset.hub_id if preset is not None else None) or name
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def adapter_rank(name: str) -> int:
    """Of a model's folder that holds an adapter in PEFT's layout; 0 for any other model. Raises
    InputError.
    """
    path = Path(name).expanduser() / "adapter_config.json"
    if not path.is_file():
        return 0
    try:
        return int(read_object(path)["r"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: found no rank, wanted the field 'r'") from None


def file_bytes(name: str) -> int:
    """Of a model's weights on this machine, 0 where they are not here."""
    try:
        folder = local_folder(name)
        files = weight_files(folder) if folder else []
    except ModelError:  # told when the run looks for it
        return 0
    return sum(file.stat().st_size for file in files)


def column_linears(model: ModelConfig) -> list[tuple[int, int]]:
    """(in, out) of q, k, v, gate and up: their outputs are split over tensor ranks."""
    width, keys = model.hidden_size, model.num_kv_heads * model.head_dim
    outs = (model.num_heads * model.head_dim, keys, keys, *2 * (model.intermediate_size,))
    return [(width, out) for out in outs]


def row_linears(model: ModelConfig) -> list[tuple[int, int]]:
    """(in, out) of o and down: their inputs are split over tensor ranks."""
    ins = (model.num_heads * model.head_dim, model.intermediate_size)
    return [(each, model.hidden_size) for each in ins]


def linears(model: ModelConfig) -> list[tuple[int, int]]:
    """(in, out) of the seven matrices of a layer."""
    return column_linears(model) + row_linears(model)


def matrix_parameters(model: ModelConfig) -> int:
    """Weights of all layers' matrices."""
    return model.num_layers * sum(fan_in * out for fan_in, out in linears(model))


def widest_matrix(model: ModelConfig) -> int:
    """Weights of the largest matrix as it is stored, gate with up or q with k and v."""
    fused = (model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    return model.hidden_size * max(2 * model.intermediate_size, fused)


def table_parameters(model: ModelConfig) -> int:
    """Weights of the embedding, the head and the last norm."""
    tables = 1 if model.tie_word_embeddings else 2
    return (tables * model.vocab_size + 1) * model.hidden_size


def copied_parameters(model: ModelConfig) -> int:
    """Weights that every tensor rank holds whole: norms, and biases added to sums over ranks."""
    layer = 2 * model.hidden_size + 2 * model.head_dim * model.qk_norm
    layer += model.hidden_size * (model.o_bias + model.mlp_bias)
    return model.num_layers * layer + model.hidden_size


def rank_parameters(model: ModelConfig, tensor: int) -> float:
    """Weights of one of `tensor` ranks."""
    copied = copied_parameters(model)
    return (model.num_parameters() - copied) / tensor + copied


def adapter_parameters(model: ModelConfig, rank: int, tensor: int = 1) -> float:
    """LoRA factors A [rank, in] and B [out, rank] of all linears on one of `tensor` ranks: the
    factor on the unsplit side is whole on each.
    """
    columns = sum(fan_in + out / tensor for fan_in, out in column_linears(model))
    rows = sum(fan_in / tensor + out for fan_in, out in row_linears(model))
    return model.num_layers * rank * (columns + rows)
