"""DTensors of one rank, for the test that they are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.distributed import destroy_process_group, init_process_group


@contextmanager
def dtensors() -> Iterator[Callable[[Tensor], Tensor]]:
    """Gives a function that wraps a tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        yield lambda x: distribute_tensor(x, mesh, [Replicate()])
    finally:
        destroy_process_group()
