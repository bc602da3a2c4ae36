"""M_t -> prompts -> candidates -> judgements -> pairs -> M_t+1: the order of the stages, and going
on after a stop. `best_of_n` is the judge at inference.
"""

from .best import BestOfN, best_of_n
from .loop import run
from .stopping import StoppedError

__all__ = ["BestOfN", "StoppedError", "best_of_n", "run"]
