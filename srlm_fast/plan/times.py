"""Seconds of a stage from its tokens, and what they are spent on.

With P weights (2 P FLOPs a token forward), r devices of a tensor split, B sequences a step:

    decode step   max(2 P B / (r math), bytes of weights / copy) + bytes of keys and values / copy
                  + two sums over the tensor ranks a layer
    reading       2 P tokens / math        training   2 P k tokens / math

where k counts passes forward: 3 for all weights, 2 for LoRA (no gradient of frozen weights), and
one more with checkpointing. Decoding gets 60 % of the measured matmul rate and 80 % of the copy's,
the rest 50 % of the matmul rate, 45 % where eight ranks share a copy or nodes work together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from srlm_fast.model import ModelConfig

from .choice import Choice
from .devices import Devices
from .memory import MOST_SEQUENCES, kv_token_bytes, learned_parameters
from .recipe import Recipe
from .work import Work

DECODE_MATH, DECODE_COPY = 0.6, 0.8
MATH, MATH_OF_MANY = 0.5, 0.45
FP8_SPEED = 1.5  # of matmuls of an fp8 base, against bfloat16; taken for those without gradients
REDUCE_SECONDS = 15e-6  # of a sum over ranks, beside its bytes
ACROSS_NODES = 50e9  # bytes/s between devices of two nodes
HALF = 2  # bytes of what is sent


@dataclass(frozen=True)
class StageTime:
    """spent: seconds by what they are spent on."""

    work: Work
    spent: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.spent.values())

    @property
    def most(self) -> str:
        """What takes the largest part."""
        return max(self.spent, key=lambda name: self.spent[name])


@dataclass(frozen=True)
class Rates:
    """The rates of one choice on its devices. tokens: that a rank trains on at once."""

    model: ModelConfig
    choice: Choice
    devices: Devices
    tokens: float
    most_sequences: int = MOST_SEQUENCES
    fp8_speed: float = FP8_SPEED

    def time(self, work: Work) -> StageTime:
        forward = 2 * self.model.num_parameters() / (self.math * self.forward_speed)
        reading = {"reading": forward * work.read, "scoring": forward * work.scored}
        return StageTime(work, self.decoding(work) | reading | self.training(work))

    def of_prompt_model(self, model: ModelConfig) -> Rates:
        """Of another model that makes the prompts, whole and in the run's dtype, beside the run's
        own.
        """
        memory, tensor = self.choice.memory, self.choice.mesh.tensor
        share = kv_token_bytes(model, 1, tensor) / kv_token_bytes(self.model, 1, tensor)
        beside = replace(
            memory,
            sampling=memory.prompt_model,
            prompt_model=memory.sampling,
            kv_token=memory.kv_token * share,
        )
        choice = replace(self.choice, memory=beside, recipe=Recipe())
        return replace(self, model=model, choice=choice)

    @property
    def math(self) -> float:
        """FLOP/s of all devices, reading and training."""
        many = self.devices.nodes > 1 or self.choice.mesh.tensor >= 8
        share = MATH_OF_MANY if many else MATH
        return share * self.devices.card.math * self.choice.mesh.number

    @property
    def forward_speed(self) -> float:
        quantised = self.choice.recipe.has_format and self.choice.recipe.base_dtype == "fp8"
        return self.fp8_speed if quantised and self.devices.card.fp8 else 1.0

    def batch(self, work: Work) -> float:
        """Sequences that run side by side on one data rank."""
        memory, own = self.choice.memory, work.sequences / self.choice.mesh.data
        room = memory.kv_room / (memory.kv_token * work.context)
        return max(1.0, min(self.most_sequences, room, own))

    def decoding(self, work: Work) -> dict[str, float]:
        """Seconds of the generated tokens."""
        batch = self.batch(work)
        steps = work.generated / (batch * self.choice.mesh.data)
        return {name: steps * each for name, each in self.step(batch, work.context).items()}

    def step(self, batch: float, context: float) -> dict[str, float]:
        """Seconds of a step of `batch` sequences."""
        memory, tensor, card = self.choice.memory, self.choice.mesh.tensor, self.devices.card
        copy = DECODE_COPY * card.copy
        flops = 2 * self.model.num_parameters() * batch / tensor
        math = flops / (DECODE_MATH * card.math * self.forward_speed)
        stream = memory.sampling / copy
        sent = batch * self.model.hidden_size * HALF * 2 * (tensor - 1) / tensor
        sums = 2 * self.model.num_layers * (REDUCE_SECONDS + sent / card.link_rate)
        return {
            "decode math": math if math > stream else 0.0,
            "weight stream": 0.0 if math > stream else stream,
            "keys and values": batch * context * memory.kv_token / copy,
            "sums over ranks": sums if tensor > 1 else 0.0,
        }

    def training(self, work: Work) -> dict[str, float]:
        """Math, and what of the exchange over data ranks does not hide behind it."""
        recipe, mesh = self.choice.recipe, self.choice.mesh
        passes = (2 if recipe.lora_rank else 3) + self.choice.checkpointing
        math = 2 * self.model.num_parameters() * passes * work.trained / self.math
        learned = learned_parameters(self.model, recipe, mesh.tensor) * HALF
        link = self.devices.card.link_rate if self.devices.nodes == 1 else ACROSS_NODES
        if mesh.shard:
            micro_steps = max(work.steps, work.trained / (self.tokens * mesh.data))
            sent = micro_steps * (2 * self.choice.memory.sampling + learned) / link
            exchange = max(0.0, sent - math)
        else:
            exchange = work.steps * 2 * learned / link * (mesh.data > 1)
        return {"training math": math, "exchange of data ranks": exchange}
