"""The ranks of a torchrun start as a mesh of two dimensions."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def device_mesh(tensor: int = 1, device: str = "cpu") -> DeviceMesh:
    """All ranks as a mesh ("data", "tensor"): weights are split over neighbours, prompts over the
    rest.

    tensor: ranks that share one copy of the weights; keep it within a node. device: "cpu" (gloo) or
    "cuda" (nccl, one device for each rank). The process group is made unless it is there. Raises
    ValueError in one line.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: {device!r}, wanted 'cpu' or 'cuda'")
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing and not dist.is_initialized():
        raise ValueError(f"{', '.join(missing)}: not set; start the run with torchrun")
    world = dist.get_world_size() if dist.is_initialized() else int(os.environ["WORLD_SIZE"])
    if tensor < 1 or world % tensor:
        raise ValueError(f"tensor: {tensor}, wanted a divisor of the run's {world} ranks")
    if device == "cuda":
        _take_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    names = ("data", "tensor")
    return init_device_mesh(device, (world // tensor, tensor), mesh_dim_names=names)


def _take_device(local_rank: int) -> None:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(f"LOCAL_RANK: {local_rank}, but this machine has {count} CUDA devices")
    torch.cuda.set_device(local_rank)
