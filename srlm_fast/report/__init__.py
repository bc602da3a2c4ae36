"""What a run shows: progress on screen, a closing table, and one self-contained HTML page."""

from .display import Display, Stage
from .page import write_report
from .table import summary_table

__all__ = ["Display", "Stage", "summary_table", "write_report"]
