"""A pool of keys and values that holds no sequence, or more than there is, is named."""

from __future__ import annotations

import dataclasses
import re

import pytest

from srlm_fast.config import tiny
from srlm_fast.plan import check_fits
from srlm_fast.records import InputError


@pytest.mark.parametrize("given, wanted", [(1e-4, "at least 0.00"), (1e6, "at most")])
def test_the_pool_is_named(given: float, wanted: str):
    with pytest.raises(InputError, match=re.escape(f"--kv-gb: found {given:g}, wanted {wanted}")):
        check_fits(dataclasses.replace(tiny(), kv_gb=given))


def test_a_pool_that_fits_is_taken():
    check_fits(dataclasses.replace(tiny(), kv_gb=0.01))
