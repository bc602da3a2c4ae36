"""`export model`: M_t as a Hugging Face folder that transformers and vLLM load, or as PEFT's."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from srlm_fast.damage import way_out
from srlm_fast.options import DTYPE_ALIASES, DTYPES, Option, one_of
from srlm_fast.records import InputError
from srlm_fast.run import DONE, in_one_line
from srlm_fast.run_folder import SUMMARY_FILE
from srlm_fast.run_models import label

from .command import Command, check_new, out_option
from .made import digest, note
from .source import find_in_run


def run(arguments: argparse.Namespace) -> int:
    source = find_in_run(arguments.what, arguments.best)
    out = Path(arguments.out).expanduser()
    check_new(out)
    with in_one_line(out):
        from srlm_fast.model import hub_id
        from srlm_fast.model.save import whole_folder
        from srlm_fast.report.card import write_card

        assert source.run is not None and source.number is not None
        base = (source.run_config or {}).get("model", "")
        with whole_folder(out) as folder:
            export(Path(source.folder_or_name), folder, arguments.dtype, arguments.merge)
            write_card(source.run, source.number, folder, hub_id(base), arguments.merge)
            note(COMMAND, arguments)
    print(f"{label(source)}: {out}")
    return DONE


def inputs(arguments: argparse.Namespace) -> dict[str, Any]:
    """The model, that an adapter is added to, and the run's figures, which the card has."""
    from srlm_fast.config import model_fingerprint
    from srlm_fast.model.load import base_folder

    source = find_in_run(arguments.what, arguments.best)
    assert source.run is not None
    folder, figures = Path(source.folder_or_name), source.run / SUMMARY_FILE
    found = {"MODEL (its content)": model_fingerprint("MODEL", folder)[:16]}
    if arguments.merge:
        found["its base (its content)"] = model_fingerprint("MODEL", base_folder(folder))[:16]
    if figures.exists():
        found[f"{SUMMARY_FILE} (its content)"] = digest("RUN", figures)
    return found


def export(folder: Path, out: Path, dtype: str | None, merge: bool) -> None:
    """Write the model of `folder` into `out`."""
    from srlm_fast.model import load_merged
    from srlm_fast.model.load import base_folder, is_adapter, read_hf

    if merge and not is_adapter(folder):
        raise InputError(f"--merge: found with {folder}, which is no adapter; wanted it left out")
    if dtype and is_adapter(folder) and not merge:
        raise InputError(f"--dtype: found with {folder}, an adapter; wanted --merge beside it")
    if merge:
        hf = read_hf(base_folder(folder))
        load_merged(folder, "cpu", dtype or hf.get("dtype") or hf.get("torch_dtype")).save(out)
    else:
        copy(folder, out, dtype)


def copy(folder: Path, out: Path, dtype: str | None) -> None:
    """The folder's files in portable form; where a dtype is given, the weights in it, one file
    after the other.
    """
    from srlm_fast.model.portable import make_portable

    check_weights(folder)
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        if dtype and file.suffix == ".safetensors":
            cast(file, out / file.name, dtype)
        else:
            shutil.copyfile(file, out / file.name)
    if dtype:
        change_dtype(out, dtype)
    name_base(out)
    make_portable(out)


def check_weights(folder: Path) -> None:
    """Raise InputError naming a file of weights that is missing or torn; headers and sizes are read
    alone.
    """
    from srlm_fast.model import ModelError
    from srlm_fast.model.load import is_adapter
    from srlm_fast.model.peft import WEIGHTS
    from srlm_fast.model.weights import tensors_of, weight_files

    try:
        files = [folder / WEIGHTS] if is_adapter(folder) else weight_files(folder)
        for _ in tensors_of(files):
            pass
    except (ModelError, FileNotFoundError) as error:
        raise InputError(f"{error}; {way_out(folder.parent)}") from None


def name_base(folder: Path) -> None:
    """Say where an adapter's base lies: "tiny" is a name that only we know."""
    from srlm_fast.model.load import TINY, find_folder
    from srlm_fast.model.peft import CONFIG
    from srlm_fast.model.portable import rewrite

    known = {TINY: str(find_folder(TINY))}
    field = "base_model_name_or_path"
    rewrite(folder / CONFIG, lambda row: row | {field: known.get(row[field], row[field])})


def cast(source: Path, target: Path, dtype: str) -> None:
    """A file of weights in another dtype."""
    from safetensors.torch import load_file, save_file

    from srlm_fast.model.load import DTYPES as KINDS

    tensors = {name: tensor.to(KINDS[dtype]) for name, tensor in load_file(source).items()}
    save_file(tensors, target, metadata={"format": "pt"})


def change_dtype(folder: Path, dtype: str) -> None:
    """What a folder says of its weights, after they have been cast."""
    from safetensors import safe_open

    from srlm_fast.model.portable import CONFIG, rewrite
    from srlm_fast.model.weights import INDEX

    def sized(index: dict[str, Any]) -> dict[str, Any]:
        total = 0
        for file in sorted(set(index["weight_map"].values())):
            with safe_open(folder / file, framework="pt") as shard:
                total += sum(shard.get_tensor(name).nbytes for name in shard.keys())
        return index | {"metadata": index.get("metadata", {}) | {"total_size": total}}

    rewrite(folder / CONFIG, lambda hf: hf | {"dtype": dtype})
    rewrite(folder / INDEX, sized)


COMMAND = Command(
    name="model",
    help="a model of a run as a Hugging Face folder for transformers and vLLM, with its card",
    what=(
        "RUN[/mN]",
        "the folder of a run (its last model), or of a model in it such as runs/x/m2",
    ),
    options=(
        out_option("a new folder for the model", "the name of a folder"),
        Option(
            "--dtype",
            "dtype",
            one_of(*DTYPES, aliases=DTYPE_ALIASES),
            "NAME",
            "of the weights that are written (default: as they are)",
        ),
    ),
    flags=(
        ("--merge", "of an adapter: write whole weights, those of its base with it added"),
        ("--best", "the model with the highest held-out score instead of the last one"),
    ),
    inputs=inputs,
    run=run,
)
