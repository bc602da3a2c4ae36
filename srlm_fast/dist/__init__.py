"""Many ranks: the mesh they form, and weights held as DTensors over it. Knows no other part."""

from .fsdp import shard, unsharded
from .mesh import device_mesh
from .tensor_parallel import TensorParallel, tensor_parallel

__all__ = ["TensorParallel", "device_mesh", "shard", "tensor_parallel", "unsharded"]
