"""A user's rubric: what the file may say, and one line for whatever it says wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from srlm_fast.judge import DEFAULT_RUBRIC, parse_score, read_rubric
from srlm_fast.records import InputError

PLAIN = "Grade it.\nQ:\n{{ prompt }}\nA:\n{{ response }}\nEnd with Score: <0-5>"


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def read(tmp_path: Path):
    return lambda text, **options: read_rubric(written(tmp_path / "r.jinja", text), **options)


def test_defaults_are_those_of_the_own_rubric(read):
    rubric = read(PLAIN)
    assert (rubric.pattern, rubric.low, rubric.high) == (None, 0, 5)
    assert (rubric.fence, rubric.score_prefix) == (DEFAULT_RUBRIC.fence, "Score:")
    assert rubric.version == "file-r"
    assert rubric.render("What?", "That.") == (
        "Grade it.\nQ:\n=====\nWhat?\n=====\nA:\n=====\nThat.\n=====\nEnd with Score: <0-5>"
    )


def test_settings_stand_in_the_file(read):
    rubric = read(
        r"{% set pattern %}\bGrade\s*={% endset %}"
        "\n{% set low = 1 %}\n{% set high = 10 %}\n{% set version = 3 %}\n"
        '{% set score_prefix = "Grade =" %}\n{% set fence = "~~~" %}\n'
        "{{ prompt }}\n{{ response }}",
        expected=True,
    )
    assert (rubric.low, rubric.high, rubric.version, rubric.fence) == (1, 10, "3", "~~~")
    assert rubric.template == "{prompt}\n{response}"
    assert parse_score("So: Grade = 10", True, rubric.pattern, 1, 10)[0] == 10


def test_jinja_of_its_own_runs_once(read):
    rubric = read(
        "{# for us #}{% for word in ['a', 'b'] %}{{ loop.index }}{{ word }} {% endfor %}.\n"
        "{{ prompt }}|{{ response }}"
    )
    assert rubric.template == "1a 2b .\n{prompt}|{response}"


def test_values_are_never_template(read):
    rubric = read(PLAIN)
    attack = "{{ 7 * 7 }} {% for i in range(9) %}x{% endfor %} {prompt} {response} {# gone #}"
    text = rubric.render(attack, attack)
    assert text.count(attack) == 2 and "49" not in text


def test_the_digest_follows_every_part(read):
    kinds = [PLAIN, PLAIN + ".", "{% set high = 4 %}" + PLAIN, "{% set version = 2 %}" + PLAIN]
    digests = {read(text).digest for text in kinds}
    assert len(digests) == len(kinds)
    assert read(PLAIN).provenance == {"version": "file-r", "digest": read(PLAIN).digest}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ prompt }}\n\n{% if %}{{ response }}", "line 3: "),
        ("{{ prompt }}\n{{ response }}\n{{ answer }}", "line 3: answer is not known"),
        ("{{ response }}", "{{ prompt }} is written 0 times, wanted once"),
        ("{{ prompt }}", "{{ response }} is written 0 times, wanted once"),
        ("{{ prompt }}{{ response }}{{ response }}", "written 2 times"),
        ("{{ prompt }}{% for i in [1, 2] %}{{ response }}{% endfor %}", "written 2 times"),
        ("{{ prompt }}{% if false %}{{ response }}{% endif %}", "written 0 times"),
        ("{{ response }} {{ prompt }}", "{{ response }} stands before {{ prompt }}"),
        ("{{ prompt }}\n{{ response | truncate(9) }}", "line 2: response stands inside"),
        ("{{ prompt }}{% if response %}x{% endif %}{{ response }}", "stands inside"),
        ("{% set prompt = 'x' %}{{ prompt }}{{ response }}", "prompt is set"),
        ("{prompt} {{ prompt }} {{ response }}", "template: has {prompt}, {prompt}, {response}"),
        ("{% set low = 5 %}{% set high = 5 %}" + PLAIN, "low, high: 5 and 5"),
        ("{% set low = -1 %}" + PLAIN, "low, high: -1 and 5"),
        ("{% set high = 'ten' %}" + PLAIN, "high is 'ten', wanted a whole number"),
        ("{% set high = true %}" + PLAIN, "high is True, wanted a whole number"),
        ("{% set pattern = '(Score' %}" + PLAIN, "pattern: '(Score' is no regular expression"),
        (r"{% set pattern = '\bScore:' %}" + PLAIN, "wanted it between {% set pattern %}"),
        ("{% set pattern = '' %}" + PLAIN, "pattern is ''"),
        ("{% set fence = '==' %}" + PLAIN, "fence is '=='"),
        ("{% set fence = 'aaaa' %}" + PLAIN, "fence is 'aaaa'"),
        ("{% include 'x' %}" + PLAIN, "cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}" + PLAIN, "cannot be rendered (SecurityError"),
        ("{{ 1 // 0 }}" + PLAIN, "cannot be rendered (ZeroDivisionError"),
        (b"\xff\xfe" + PLAIN.encode(), "not UTF-8 (byte 1)"),
        ("", "written 0 times"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(read, tmp_path, text, said):
    with pytest.raises(InputError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "r.jinja"))
    assert said in message and "\n" not in message


def test_no_such_file_and_a_folder(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            read_rubric(path)


def test_a_prefix_that_the_pattern_does_not_find_is_refused_where_it_is_used(read):
    text = "{% set pattern = 'Grade:' %}" + PLAIN
    assert read(text).score_prefix == "Score:"
    with pytest.raises(InputError, match="score_prefix is 'Score:'"):
        read(text, expected=True)
    assert read("{% set score_prefix = 'Grade:' %}" + text, expected=True).score_prefix == "Grade:"
