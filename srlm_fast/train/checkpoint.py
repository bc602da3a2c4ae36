"""The state of a training on disk: written whole or not at all, and read back bit for bit.

A checkpoint is one file. Where the weights lie on many ranks its tensors are in a folder beside it
that the file names: the file is replaced after all ranks have written, and the folder of the one
before it is removed then. Any number of ranks reads what any other has written.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .optimizer import Optimizer, local
from .ranks import Ranks

FORMAT = 2


class CheckpointError(ValueError):
    """The file is not a checkpoint of this training. The message: file, found, wanted."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` atomically: a crash leaves the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)  # on a full disk what is left of it is in the way
        raise


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state at `path` with tensors on the CPU, or None when there is no such file.

    Raises CheckpointError when the file cannot be read or was written by another training.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = (state["format"], state["fingerprint"])
    except Exception as error:
        raise CheckpointError(
            f"checkpoint: {path}: {type(error).__name__}, wanted one written by this trainer"
        ) from error
    if found != (FORMAT, fingerprint):
        raise CheckpointError(
            f"checkpoint: {path}: of another training, wanted the same data, settings, seed, model"
        )
    return state


def remove_checkpoint(path: Path) -> None:
    """The file, if there is one, and what belongs to it."""
    path.unlink(missing_ok=True)
    for folder in _folders(path):
        shutil.rmtree(folder, ignore_errors=True)


class Checkpoint:
    """The checkpoint of one training at `path`. All ranks call the same methods."""

    def __init__(self, path: Path, fingerprint: str, ranks: Ranks) -> None:
        self.path, self.fingerprint, self.ranks = path, fingerprint, ranks
        self._folder = ""  # the one that the file names

    def save(self, state: dict[str, Any], model: Any, optimizer: Optimizer | None) -> None:
        """Replace what is there by `state`, the weights that are trained, and the optimizer's."""
        tensors = _spread(model, {} if optimizer is None else optimizer.state())
        state = {**state, "fingerprint": self.fingerprint}
        if self.ranks.mesh is None:
            whole = {name: spread.pieces[0].local for name, spread in tensors.items()}
            save_checkpoint(self.path, {**state, "tensors": whole})
            self._remove_others("")
            return
        from .shards import save_shards

        folder = next(f for f in _folders(self.path) if f.name != self._folder)
        if self.ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
        self.ranks.wait()
        save_shards(folder, tensors)
        if self.ranks.is_first:
            save_checkpoint(self.path, {**state, "folder": folder.name})
            self._remove_others(folder.name)
        self.ranks.wait()
        self._folder = folder.name

    def load(self, model: Any, optimizer: Optimizer | None) -> dict[str, Any] | None:
        """Fill the weights and the optimizer; returns the state beside them, or None when there is
        no checkpoint. Raises CheckpointError.
        """
        state = load_checkpoint(self.path, self.fingerprint)
        self.ranks.wait()  # nobody replaces what another is still to read
        if state is None:
            return None
        self._folder = state.get("folder", "")
        kept = {} if optimizer is None else optimizer.state()
        spread = _spread(model, kept)
        if self._folder:
            self._load_folder(self.path.with_name(self._folder), spread)
        else:
            _fill(spread, state.pop("tensors"))
        if optimizer is not None:
            optimizer.load(kept)
        model.touch()
        return state

    def _load_folder(self, folder: Path, spread: Mapping[str, Any]) -> None:
        from .shards import load_shards

        try:
            load_shards(folder, spread, self.ranks.mesh is None)
        except Exception as error:
            raise CheckpointError(
                f"checkpoint: {folder}: {type(error).__name__}, wanted what {self.path.name} names"
            ) from error

    def _remove_others(self, kept: str) -> None:
        for folder in _folders(self.path):
            if folder.name != kept:
                shutil.rmtree(folder, ignore_errors=True)


def fingerprint_of(*parts: bytes | str) -> str:
    """A hash of all that decides a training's numbers besides the weights it starts from."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _folders(path: Path) -> list[Path]:
    """Two, by turns: the one that counts stays while the other is written."""
    return [path.with_name(f"{path.name}.{i}") for i in range(2)]


def trained_weights(model: nn.Module) -> list[tuple[str, Any]]:
    """By name, what training moves and a checkpoint keeps: a frozen base is not written."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _spread(model: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Name in the checkpoint -> `shards.Spread`, for weights that are trained and the optimizer's
    `state`, {} for none.
    """
    from .shards import Spread

    found = {}
    for name, weight in trained_weights(model):
        values = {f"weights.{name}": local(weight)}
        for kind in ("first", "second", "masters"):
            if name in state.get(kind, {}):
                values[f"optimizer.{kind}.{name}"] = state[kind][name]
        for key, value in values.items():
            if hasattr(weight, "placements"):
                pieces = model.layout.pieces(name, weight, value)
                found[key] = Spread(tuple(weight.shape), pieces)
            else:  # the same on all ranks
                found[key] = Spread.whole(value)
    if "steps" in state:
        found["optimizer.steps"] = Spread.whole(state["steps"])
    return found


@torch.no_grad()
def _fill(spread: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for name, held in spread.items():
        for offsets, piece in held.pieces:
            sizes = zip(offsets, piece.shape, strict=True)
            box = tuple(slice(first, first + size) for first, size in sizes)
            piece.copy_(tensors[name][box])
