"""Code without comments and docstrings, in bytes."""

from __future__ import annotations

import pytest

from amptune.lint.code_only import code_only


@pytest.mark.parametrize(
    ("text", "kept", "dropped"),
    [
        ("x = 1  # float16", "x = 1", "float16"),
        ('"""Doc: float16."""\nx = 1', "x = 1", "float16"),
        ("'''float16\n'''\nx = 1", "x = 1", "float16"),
        ('r"""float16"""\nx = 1', "x = 1", "float16"),
        ('x = "# float16"', '"# float16"', "\0"),
        ("x = 'it\\'s # float16'", "float16'", "\0"),
        ('x = f"""{y.half()} # float16"""', "float16", "\0"),
        ('x = rf"""{y.half()}"""  # float16', "half", "float16"),
        ("x = ''  # float16\ny = 1", "y = 1", "float16"),
        ('x = "unclosed # float16\ny = 1  # bf16', "y = 1", "bf16"),
        ('"""unclosed float16', "", "float16"),
        ('x = """a "quoted" \\""" float16"""; y = 1', "y = 1", "float16"),
        ("x = 1 # '''\ny = 2 # '''", "y = 2", "'"),
    ],
)
def test_strings_and_comments_are_told_apart(text: str, kept: str, dropped: str) -> None:
    found = code_only(text.encode()).decode()
    assert kept in found
    assert dropped not in found


def test_a_dropped_string_parts_the_words_around_it() -> None:
    assert b"fp16" not in code_only(b'fp"""x"""16')


def test_long_and_odd_texts_take_no_longer_than_their_length() -> None:
    assert not code_only(b'"' * 300_000).strip()
    assert code_only(b"'\\" * 300_000)
    assert code_only(b'f"""' * 100_000)
