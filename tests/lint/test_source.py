"""Positions, and texts that are hard to parse."""

from __future__ import annotations

import ast
import sys

import pytest

from amptune.lint.source import SourceFile, Span


def test_columns_count_characters() -> None:
    source = SourceFile("a.py", "é = 'ü'; f(é)\nxyz")
    call = source.nodes(ast.Call)[0]
    assert source.span(call) == Span(1, 10, 1, 14)
    assert source.segment(call) == "f(é)"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_ends(newline: str) -> None:
    source = SourceFile("a.py", newline.join(["a = 1", "b = f(2)", ""]))
    call = source.nodes(ast.Call)[0]
    assert source.segment(call) == "f(2)"
    assert source.newline == newline


def test_form_feed_and_unicode_separators_are_no_line_ends() -> None:
    source = SourceFile("a.py", "a = 1\x0c\nb = '\u2028\x85'\nf()\n")
    assert source.span(source.nodes(ast.Call)[0]).line == 3
    assert source.segment(source.nodes(ast.Call)[0]) == "f()"


def test_segment_over_lines() -> None:
    source = SourceFile("a.py", "x = f(\n  1,\n)\n")
    assert source.segment(source.nodes(ast.Call)[0]) == "f(\n  1,\n)"


@pytest.mark.parametrize(
    "text",
    ["print 'python 2'\n", "def f(:\n", "x = 1\n\x00", "(" * 500 + ")" * 500, "x = " + "-" * 200_000 + "1", "\ud800 ="],
    ids=["python2", "syntax", "null", "parentheses", "minus", "surrogate"],
)
def test_unparsable_text_is_a_syntax_error(text: str) -> None:
    with pytest.raises(SyntaxError):
        SourceFile("a.py", text)


def test_deep_trees_do_not_recurse() -> None:
    depth = sys.getrecursionlimit() // 2
    source = SourceFile("a.py", "x = " + " + ".join(["f(1)"] * depth))
    assert len(source.nodes(ast.Call)) == depth


def test_invalid_escapes_are_not_warned_about() -> None:
    SourceFile("a.py", "x = '\\d'\n")  # warnings are errors in this test run


def test_tree_questions() -> None:
    source = SourceFile("a.py", "class A:\n def f(self):\n  for x in y:\n   while x:\n    g(x)\n  else:\n   h()\n")
    g, h = source.nodes(ast.Call)
    function, cls = source.function_of(g), source.class_of(g)
    assert function is not None
    assert cls is not None
    assert (function.name, cls.name) == ("f", "A")
    assert [type(loop).__name__ for loop in source.loops_of(g)] == ["While", "For"]
    assert source.loops_of(h) == []
    assert isinstance(source.statement_of(g), ast.Expr)
    assert source.enclosing(g, ast.For) is source.nodes(ast.For)[0]
