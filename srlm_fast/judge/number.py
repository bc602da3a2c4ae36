r"""The number behind a score label: its grammar, as regular expressions.

    number      = sign? point? digit (digit | [-–.,_'] digit | [eE] sign? digit | [xX] hex | ½)*
    denominator = ("/" | "out of") number ("/" number)*          emphasis and spaces, no line break,
                                                                 in between

It is read as far as it goes, so that 10 is never a 1. It counts when it is a plain integer of the
range and the denominator, if there is one, is the range's upper end; anything else that is a number
is out of range. Words and full-width digits are no numbers.
"""

from __future__ import annotations

import regex

INLINE = r"[ \t\u00a0\u202f\u3000*_`]"  # spaces and markdown emphasis, no line break
DIGIT = "[0-9]"
HEX = "[0-9a-fA-F]"
SIGN = r"[-+\u2212]"
POINT = r"\."
SEPARATOR = r"[-\u2013.,_']"
EXPONENT, HEX_MARK = "[eE]", "[xX]"
FRACTION = r"[\u00bc-\u00be\u2150-\u215f]"

START = rf"{SIGN}?{POINT}?{DIGIT}"
MORE = rf"{SEPARATOR}{DIGIT}|{EXPONENT}{SIGN}?{DIGIT}|{HEX_MARK}{HEX}|{FRACTION}"
NUMBER = rf"{START}(?:{DIGIT}|{MORE})*"
SLASH = rf"{INLINE}*[/\u2044\u2215\uff0f]{INLINE}*"  # also as typographers and Chinese write it
# A bracket may open before it: "4 (out of 10)".
OUT_OF = rf"{INLINE}*(?:[(\[]{INLINE}*)?[oO][uU][tT]{INLINE}+[oO][fF]{INLINE}+"
OF = rf"(?:{SLASH}|{OUT_OF})"
DENOMINATOR = rf"{OF}(?P<of>{NUMBER}(?:{SLASH}{NUMBER})*)"
# A number does not begin inside another one; this matters to patterns such as `Score.*(\d)`.
_JOINS = rf"(?:{SEPARATOR}|{EXPONENT}{SIGN}?|{HEX_MARK})"
APART = rf"(?<!{DIGIT}(?:{HEX_MARK}{HEX})?{FRACTION}*{_JOINS}?)"

# What may follow a number, so that it is not over yet: one without and one with a denominator.
CONTINUES = regex.compile(rf"{MORE}|{OF}{START}")
CONTINUES_DENOMINATOR = regex.compile(rf"{MORE}|{SLASH}{START}")
_INTEGER = regex.compile(r"0|[1-9][0-9]{0,8}")


def is_score(value: str, of: str | None, low: int, high: int) -> bool:
    """Whether a number, with its denominator if it has one, is a score of low..high."""
    in_range = bool(_INTEGER.fullmatch(value)) and low <= int(value) <= high
    return in_range and (of is None or of == str(high))
