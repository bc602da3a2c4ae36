"""M_t -> prompts -> candidates -> judgements -> pairs -> M_t+1: the order of the stages, and going
on after a stop.
"""

from .loop import StoppedError, run

__all__ = ["StoppedError", "run"]
