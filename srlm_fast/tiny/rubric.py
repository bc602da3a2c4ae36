"""The tiny judge's rubric, as the judge package takes it."""

from srlm_fast.judge import Rubric
from srlm_fast.tiny.judgement import RUBRIC as TEMPLATE

RUBRIC = Rubric(template=TEMPLATE, version="tiny-1")
