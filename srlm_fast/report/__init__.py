"""What a run shows: progress on screen, a closing table, and one self-contained HTML page."""

from .card import write_card, write_cards
from .display import Display, Stage
from .page import write_report
from .table import summary_table

__all__ = ["Display", "Stage", "summary_table", "write_card", "write_cards", "write_report"]
