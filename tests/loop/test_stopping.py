"""What a run that ends by itself says."""

from __future__ import annotations

import pytest

from srlm_fast.loop.stopping import cure


@pytest.mark.parametrize(("cut", "is_told"), [(6, True), (5, False), (0, False)])
def test_judgements_that_are_cut_name_the_option_that_lets_them_end(cut, is_told):
    said = cure({"truncated": cut, "ok": 10 - cut}, 16)
    assert ("--judge-max-tokens 16" in said) == bool(said) == is_told
    assert cure({}, 16) == ""
