"""`--plan`: bytes on each device, what fits and how long a round takes; nothing is run or read.

Memory is counted from the model's configuration (`memory`), for every recipe (`recipe`) on every
mesh (`mesh`) of the devices (`devices`, `cards`). Time follows from the tokens that a round reads,
writes and trains on (`work`) and from rates of a device with stated shares (`times`).
"""

from .page import plan_lines, print_plan
from .refusal import check_fits, check_lengths
from .shape import model_config

__all__ = ["check_fits", "check_lengths", "model_config", "plan_lines", "print_plan"]
