"""`python -m srlm_fast.compare A B --out FOLDER`: which of two models gives the better answers.

Both answer the same prompts, a judge says who wins each time, and the figures come with intervals,
length controlled beside raw. Exit status as `srlm_fast.run` has it. Only the standard library is
imported before the options have been read.
"""

from .command import main
from .options import make_parser, read_options

__all__ = ["main", "make_parser", "read_options"]
