"""Prompts out of what a model wrote when asked for one.

It may go on with further tasks, answer them (arXiv 2401.10020, appendix A.5), number, quote or
format them, or talk about what it does, as chat models like to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Markdown that may stand around a label, and a number's or a label's end.
_OPEN, _CLOSE, _END = r"[#>*_\s]*", r"[*_]*", r"[:.)]"
_OWN_END = r"(?:[:.)]|\s[-–—]\s)"
_ABOUT = r"(?:tasks?|prompts?|instructions?|questions?|requests?|problems?|examples?|ideas?|ones?)"
_EAGER = r"(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|no problem|got it)"
_HERE = r"(?:here(?:'s|’s| is| are)|i(?:'d| would) be (?:happy|glad)|the next)\b[^\n:]*"
# "Sure!", "Sure, here is a task:", "Here is task 9:". A prompt may start with "Here is a
# question:", but then goes on in the same line.
_LEAD_IN = re.compile(
    rf"\s*(?:{_EAGER}\b[,.!\s]*{_HERE}\b{_ABOUT}\b[^\n:]*:{_CLOSE}|{_EAGER}[.!:]+(?=\s)"
    rf"|{_HERE}\b{_ABOUT}\b[^\n:]*(?<=\d){_CLOSE}:{_CLOSE}"
    rf"|{_HERE}\b{_ABOUT}\b[^\n:]*:{_CLOSE}\s*$)",
    re.I | re.M,
)
_SIGN_OFF = re.compile(
    r"\n\s*\n\s*(?:let me know|i hope|hope (?:this|these)|feel free|would you like|do you want me)"
    r"\b[^\n]*\s*\Z",
    re.I,
)
_WRITER = r"(?:(?:sample|example|expected|model|possible|suggested|correct)\s+)?"
_REPLY = r"(?:answer|response|output|solution|assistant|reply)"
_ANSWER = re.compile(
    rf"^{_OPEN}{_WRITER}{_REPLY}(?:\s*\d+)?{_CLOSE}\s*:|^#+\s*{_WRITER}{_REPLY}s?\s*$", re.M | re.I
)
_ANSWERS = re.compile(rf"^{_OPEN}(?:the\s+)?{_WRITER}{_REPLY}s{_CLOSE}\s*:", re.M | re.I)
_LABEL = re.compile(
    r"\A(?:(?:new|next)\s+)?(?:task|prompt|instruction|question|request|user|human)"
    rf"(?:\s*\d+)?{_CLOSE}\s*:{_CLOSE}\s*|\A\*\*[^*\n]{{1,60}}(?::\*\*|\*\*\s*:)\s*(?=\S)",
    re.I,
)
_NUMBERED = rf"^{_OPEN}\(?(\d{{1,3}}){_END}{_CLOSE}\s"
_NAMED = re.compile(
    rf"{_OPEN}(task|prompt|instruction|question|request)(?:\s*\d+)?{_CLOSE}\s*:", re.I
)
_BULLETED = r"^\s*[-*•]\s"
# What is no prompt, but what a chat model says in its place.
_REFUSAL = re.compile(
    r"\W*(?:i(?:'m|’m| am) (?:sorry|afraid|unable)|sorry,|i apologi[sz]e|as an ai\b"
    r"|i (?:cannot|can't|can’t|can not|won't|won’t) (?:\w+ )?"
    r"(?:help|assist|provide|generate|create|fulfil|come up|comply|do that))",
    re.I,
)
_FENCE = re.compile(r"\s*(```|~~~)[^\n`]*\n(.*?)\n?\s*\1\s*\Z", re.S)
_RULES = re.compile(r"(?:^\s*(?:-{3,}|\*{3,}|_{3,})\s*$)+", re.M)
_PAIRS = {'"': '"', "“": "”", "'": "'", "‘": "’", "«": "»", "`": "`", "**": "**", "*": "*"}


def split_output(text: str, item: str = "Task {n}: {prompt}\n", header: str = "") -> list[str]:
    """The prompts in what a model wrote, in order; none where there is none.

    item: how the request showed each task; header: what stood above them, which a model may repeat.
    """
    text = _ANSWERS.split(_unwrapped(text, header), maxsplit=1)[0]
    found = (_clean(piece) for piece in _pieces(text, own_mark(item)))
    return [piece for piece in found if piece]


def is_refusal(text: str) -> bool:
    """Whether a chat model declines to write a prompt, rather than writing one."""
    return bool(_REFUSAL.match(text))


def own_mark(item: str) -> str:
    """The pattern of what stands before each task in the request, however it is emphasised; empty
    where that is nothing but white space. Its group is the number.
    """
    mark = item.split("{prompt}")[0].strip()
    if not mark:
        return ""
    before, number, behind = mark.partition("{n}")
    plain = re.sub(r"\\?\s+", r"\\s+", re.escape(before.strip()))
    end = _OWN_END if behind.strip() in (":", ".", ")") else re.escape(behind.strip())
    return rf"^{_OPEN}(?i:{plain})" + (rf"\s*(\d+){_CLOSE}\s*{end}{_CLOSE}" if number else _CLOSE)


def _unwrapped(text: str, header: str) -> str:
    """Without what is around the tasks: a repeated header, talk before and behind, a fence."""
    text = text.strip()
    text = text.removeprefix(header.strip()) if header.strip() else text
    lead_in = _LEAD_IN.match(text)
    text = _SIGN_OFF.sub("", text[lead_in.end() :] if lead_in else text)
    fenced = _FENCE.match(text)
    return _unwrapped(fenced[2], header) if fenced else text


def _pieces(text: str, mark: str) -> Iterator[str]:
    """A list taken apart. Lines with numbers, bullets or a name ("Prompt:") part it only where it
    starts with one; else they belong to the prompt. A number that is not above the one before
    begins something else: the answers.
    """
    starts = [mark] if mark else []
    lists = [_NUMBERED, _BULLETED]
    if named := _NAMED.match(text):
        lists.append(rf"^{_OPEN}(?i:{named[1]})(?:\s*(\d+))?{_CLOSE}\s*:{_CLOSE}")
    starts += [each for each in lists if re.match(each, text)][:1]
    last, begin = -1, 0
    for found in re.finditer("|".join(starts), text, re.M) if starts else ():
        number = next((int(group) for group in found.groups() if group), None)
        yield text[begin : found.start()]
        begin = found.end()
        if number is not None:
            if number <= last:
                return
            last = number
    yield text[begin:]


def _clean(piece: str) -> str:
    """A prompt without its answer, label, rules, emphasis and quotes."""
    piece = _RULES.sub("", _ANSWER.split(piece, maxsplit=1)[0]).strip()
    piece = _LABEL.sub("", re.sub(_BULLETED, "", piece)).strip()
    if piece.count("**") % 2:  # the label took the other one
        piece = piece.removesuffix("**").strip()
    return _bare(piece)


def _bare(piece: str) -> str:
    """Without quotes or emphasis around the whole of it."""
    for left, right in _PAIRS.items():
        inner = piece[len(left) : -len(right)]
        whole = piece.startswith(left) and piece.endswith(right) and len(piece) > len(left)
        if whole and left not in inner and right not in inner:
            return _bare(inner.strip())
    return piece
