"""Weights sharded over data ranks (FSDP2), and whole for as long as one samples.

A sampling rank takes as many steps as its own prompts need, so no step may wait for another rank:
the weights are gathered once, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from .layout import Layout


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Shard a decoder in place over a mesh of one dimension, layer by layer, after
    `tensor_parallel` if at all. Gradients of half precision are summed over ranks in fp32.
    """
    half = model.dtype.itemsize < 4
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32 if half else None)
    if model.layout is None:
        model.layout = Layout(mesh)
    else:
        model.layout.groups.insert(0, mesh.get_group())
    with _integers_allowed():
        for layer in model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh, mp_policy=policy)


@contextmanager
def _integers_allowed() -> Iterator[None]:
    """FSDP of torch 2.11 makes each shard a parameter that requires a gradient, which integers
    cannot, and only then sets whether the whole one did.
    """
    if torch.__version__ >= "2.13":
        yield
        return
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    _fsdp_param.nn = SimpleNamespace(**vars(nn) | {"Parameter": _parameter})  # type: ignore
    try:
        yield
    finally:
        _fsdp_param.nn = nn


def _parameter(data: Tensor, requires_grad: bool = True) -> nn.Parameter:
    return nn.Parameter(data, requires_grad and data.is_floating_point())


def reshard(model: Any) -> None:
    """Give back what forwards without a backward have left whole: afterwards the model's parameters
    are the sharded ones again. A model without FSDP is left as it is.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def unsharded(model: Any) -> Iterator[None]:
    """Every rank holds the weights of its tensor rank whole, and forwards exchange nothing over
    data ranks. All ranks enter and leave together. A model without FSDP is left as it is.

    Afterwards layers are resharded after each forward and the root is not, the default of
    `fully_shard`. Raises ValueError when only parts of the model are sharded.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if modules and modules[0] is not model:
        raise ValueError("model: only parts of it are sharded; wanted shard(model, mesh)")
    for module in modules:  # the root first: it tells the others that they are not
        module.unshard()
    if modules:
        model.set_reshard_after_forward(False)
    try:
        yield
    finally:
        reshard(model)
        if modules:
            model.set_reshard_after_forward(True)
            model.set_reshard_after_forward(False, recurse=False)
