"""Where a score is written, for tokenizers that split and merge the text in their own ways."""

import pytest
from transformers import PreTrainedTokenizerFast

from srlm_fast.judge import ScorePlace
from tests.judge.tokenizers_for_tests import byte_level, sentencepiece, wordpiece


def place_of(tokenizer, values, prefix="Score:"):
    return ScorePlace(PreTrainedTokenizerFast(tokenizer_object=tokenizer), prefix, values)


def spelled(tokenizer, place):
    return {
        value: {tokenizer.id_to_token(i) for i in ids} for value, ids in place.score_ids.items()
    }


def test_byte_level_with_and_without_a_space():
    place = place_of(byte_level(), (1, 2, 4, 10))
    assert [byte_level().id_to_token(i) for i in place.lead_up()] == ["Score", ":"]
    # No token "10" was merged, and "1" is no part of it.
    wanted = {1: {"1", "Ġ1"}, 2: {"2", "Ġ2"}, 4: {"4", "Ġ4"}, 10: {"Ġ10"}}
    assert spelled(byte_level(), place) == wanted


def test_sentencepiece_with_bytes_beside_the_letters():
    """The blank is a token of its own, so it belongs to what leads up to the digit."""
    place = place_of(sentencepiece(), (2, 3, 5))
    tokens = [sentencepiece().id_to_token(i) for i in place.lead_up()]
    assert tokens == ["▁Sc", "o", "re", ":", "▁"]
    wanted = {2: {"2", "<0x32>"}, 3: {"3", "<0x33>"}, 5: {"5", "<0x35>"}}
    assert spelled(sentencepiece(), place) == wanted


def test_wordpiece_has_no_blanks():
    found = spelled(wordpiece(), place_of(wordpiece(), range(11)))
    assert found == {value: {str(value)} for value in range(11)}


def test_what_leads_up_stands_behind_the_justification():
    place, text = place_of(byte_level(), (1, 2, 4)), "It is 3 times right.\n"
    lead, whole = place.lead_up(text), byte_level().encode(f"{text}Score: 4").ids
    assert byte_level().decode(lead) == f"{text}Score:"
    assert whole[: len(lead)] == lead
    assert whole[len(lead) :] == [byte_level().token_to_id("Ġ4")]


def test_no_prefix_at_all():
    assert spelled(byte_level(), place_of(byte_level(), (1, 2), ""))[1] == {"1", "Ġ1"}


REFUSED = {
    "a blank of its own before 3 alone": (byte_level, range(6), r"0\.\.5"),
    "10 in two tokens": (sentencepiece, (2, 3, 10), r"2\.\.10"),
    "unknown words, all the same": (wordpiece, ("é", "ü"), r"é\.\.ü"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_values_without_a_token_of_their_own_are_refused(case):
    tokenizer, values, named = REFUSED[case]
    with pytest.raises(ValueError, match=f"no token of its own for each of {named}"):
        place_of(tokenizer(), values)
