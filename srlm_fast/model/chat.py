"""A conversation as the model expects it: its own chat template, or a stated default when it has
none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from .config import ModelError

# Plain text that any tokenizer can write; saved with M1, so that later users of the model see the
# same turns.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}\n\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


def ensure_chat_template(tokenizer: Any) -> bool:
    """Give a tokenizer without a chat template the default one. True when it had none."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return True


def render(tokenizer: Any, prompt: str, turns: Sequence[Mapping[str, Any]] = ()) -> str:
    """The text that the model continues to answer `prompt`, what was said before it in `turns`.

    A template that refuses a system message has it in front of the first user turn. Raises
    ModelError for a conversation that the template cannot render.
    """
    messages = [*turns, {"role": "user", "content": prompt}]
    try:
        return _asked(tokenizer, messages)
    except Exception as error:  # jinja raises many kinds
        if messages[0]["role"] == "system":
            *before, last = _without_system(messages)
            return render(tokenizer, last["content"], before)
        roles, reason = ", ".join(m["role"] for m in messages), str(error).strip().split("\n")[0]
        raise ModelError(
            f"the chat template cannot render a conversation of {roles} ({reason})"
        ) from None


def _asked(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _without_system(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The system message as the beginning of the turn behind it."""
    system, first, *rest = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def encode(tokenizer: Any, prompt: str, turns: Sequence[Mapping[str, Any]] = ()) -> list[int]:
    """Token ids of `render`; the begin token comes from the template, or from the tokenizer where
    the template has none.
    """
    return _ids(tokenizer, render(tokenizer, prompt, turns))


def encode_messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Token ids of a whole conversation, its last answer closed as the template closes one."""
    return _ids(tokenizer, tokenizer.apply_chat_template(list(messages), tokenize=False))


def _ids(tokenizer: Any, text: str) -> list[int]:
    begin = tokenizer.bos_token
    add = bool(begin) and not text.startswith(begin)
    return tokenizer(text, add_special_tokens=add)["input_ids"]


def reserved_strings(tokenizer: Any) -> tuple[str, ...]:
    """Strings that the tokenizer turns into a token of their own wherever they stand, and that mean
    something to the model: its special tokens, and added ones that the chat template writes.
    """
    # Keyed by what can change them: a vocabulary with Llama 3's 256 takes a millisecond to list.
    return _reserved(tokenizer, len(tokenizer), str(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _reserved(tokenizer: Any, _size: int, template: str) -> tuple[str, ...]:
    added = tokenizer.added_tokens_decoder.values()
    named = {token.content for token in added if token.special or token.content in template}
    strings = named | set(map(str, tokenizer.all_special_tokens))
    return tuple(sorted(string for string in strings if string.strip()))
