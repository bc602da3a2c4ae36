"""Many ranks: the mesh they form, and weights held as DTensors over it. Knows no other part."""

from .fsdp import reshard, shard, unsharded
from .layout import Layout, Piece
from .mesh import device_mesh
from .tensor_parallel import TensorParallel, tensor_parallel

__all__ = [
    "Layout",
    "Piece",
    "TensorParallel",
    "device_mesh",
    "reshard",
    "shard",
    "tensor_parallel",
    "unsharded",
]
