"""How ranks share a model: each copy of the weights is split over `tensor` devices of a node."""

from __future__ import annotations

from dataclasses import dataclass

from srlm_fast.model import ModelConfig

from .devices import Devices

TENSOR = (1, 2, 4, 8)


@dataclass(frozen=True)
class Mesh:
    """data x tensor devices. shard: the data ranks share out weights, gradients and optimizer
    among them (FSDP) and gather a layer when it runs.
    """

    data: int = 1
    tensor: int = 1
    shard: bool = False

    @property
    def number(self) -> int:
        return self.data * self.tensor

    @property
    def parts(self) -> int:
        """Devices that what is trained is spread over."""
        return self.number if self.shard else self.tensor

    @property
    def name(self) -> str:
        parts = [f"tp {self.tensor}"] if self.tensor > 1 else []
        if self.data > 1:
            parts.append(f"{'fsdp' if self.shard else 'dp'} {self.data}")
        return " x ".join(parts) or "1 device"

    def options(self) -> list[str]:
        tensor = ["--tensor-parallel", str(self.tensor)] if self.tensor > 1 else []
        return tensor + (["--shard", "yes"] if self.shard else [])


def divides(model: ModelConfig, tensor: int) -> bool:
    """Whether `tensor` ranks can train a copy together: heads copied over ranks only sample."""
    parts = (model.num_heads, model.num_kv_heads, model.intermediate_size)
    return not any(part % tensor for part in parts)


def meshes(model: ModelConfig, devices: Devices) -> list[Mesh]:
    """Of all the devices, in the order in which they are preferred: weights that lie where they
    are, in the fewest parts, before weights that have to be gathered, the least of them.
    """
    splits = [n for n in TENSOR if divides(model, n) and devices.per_node % n == 0]
    whole = [Mesh(devices.number // tensor, tensor) for tensor in splits]
    return whole + [Mesh(m.data, m.tensor, True) for m in reversed(whole) if m.data > 1]
