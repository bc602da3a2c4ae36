"""The user's own chat template, tried before any weight is read."""

from __future__ import annotations

from pathlib import Path

from srlm_fast.records import InputError

OPTION = "--chat-template"
TRIED = [[{"role": "user", "content": "Hello."}]]


def read_chat_template(path: str | None) -> str | None:
    """The text of a Jinja chat template, None for no file. Raises InputError, one line that names
    the file and, where it is known, the line.
    """
    if path is None:
        return None
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        made = render_jinja_template(
            TRIED, chat_template=text, add_generation_prompt=True, bos_token="", eos_token=""
        )[0][0]
    except UnicodeDecodeError as error:
        raise refusal(path, f"not UTF-8 (byte {error.start + 1})") from None
    except jinja2.TemplateSyntaxError as error:
        raise refusal(f"{path} line {error.lineno}", str(error.message)) from None
    except Exception as error:  # a template may raise whatever it likes
        raise refusal(path, str(error) or type(error).__name__) from None
    if TRIED[0][0]["content"] not in made:
        raise refusal(path, "it leaves out what the user says")
    return text


def refusal(place: str, found: str) -> InputError:
    reason = " ".join(found.split())[:200]
    return InputError(
        f"{OPTION} {place}: {reason}, wanted a Jinja template that renders `messages`"
    )
