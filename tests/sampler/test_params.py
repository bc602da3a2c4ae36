import pytest

from srlm_fast.sampler import SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 300),
        ("stop", ("",)),
        ("stop_token_ids", (-1,)),
        ("seed", 0.5),
    ],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        SamplingParams(**{field: value})


def test_one_stop_string_may_stand_alone():
    assert SamplingParams(stop="end").stop == ("end",)


def test_frozen():
    with pytest.raises(AttributeError):
        SamplingParams().n = 3
