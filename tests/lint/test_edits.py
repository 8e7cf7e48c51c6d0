"""Text edits and how fixes are applied."""

from __future__ import annotations

import ast
import textwrap

import pytest

from amptune.core.finding import Edit, FileError, Finding, Fix, Location, Safety, Severity
from amptune.lint import edits
from amptune.lint.check import TextReport
from amptune.lint.fixing import add_import, apply_edits, choose_fixes, fix_until_stable
from amptune.lint.source import SourceFile


def edited(code: str, make) -> str:  # type: ignore[no-untyped-def]
    source = SourceFile("a.py", textwrap.dedent(code))
    call = next(node for node in source.nodes(ast.Call) if isinstance(node.func, ast.Name) and node.func.id == "f")
    return apply_edits(source.text, [make(source, call)])


@pytest.mark.parametrize(
    ("before", "argument", "after"),
    [
        ("f(1, k=2)", "k", "f(1)"),
        ("f(k=2, j=3)", "k", "f(j=3)"),
        ("f(k=2)", "k", "f()"),
        ("f(k=2,)", "k", "f()"),
        ("f(a, k=g(1, [2, 3]), j=(3))", "k", "f(a, j=(3))"),
        ("f(a, j=(3), k=2)", "j", "f(a, k=2)"),
        ("f(\n    a,\n    k=2,  # why\n    j=3,\n)", "k", "f(\n    a,\n    j=3,\n)"),
        ("f(\n    a,\n    k=2,\n)", "k", "f(\n    a,\n)"),
        ("(f)(k=')', j=1)", "k", "(f)(j=1)"),
        ("f(é, k='ü', j=1)", "k", "f(é, j=1)"),
    ],
)
def test_delete_argument(before: str, argument: str, after: str) -> None:
    assert edited(before, lambda source, call: edits.delete_argument(source, call, argument)) == after


def test_delete_positional_argument() -> None:
    assert edited("f(1, (2), 3)", lambda source, call: edits.delete_argument(source, call, call.args[1])) == "f(1, 3)"


def test_delete_unknown_argument() -> None:
    with pytest.raises(ValueError, match="no argument 'x'"):
        edited("f(1)", lambda source, call: edits.delete_argument(source, call, "x"))


@pytest.mark.parametrize(
    ("before", "first", "after"),
    [
        ("f()", False, "f(N)"),
        ("f( )", False, "f( N)"),
        ("f(1)", False, "f(1, N)"),
        ("f(1,)", False, "f(1, N,)"),
        ("f(1, k=2)", True, "f(N, 1, k=2)"),
        ("f(\n    1,\n    2,\n)", False, "f(\n    1,\n    2,\n    N,\n)"),
        ("f(\n    1,  # one\n)", False, "f(\n    1,\n    N,  # one\n)"),
        ("f((1))", False, "f((1), N)"),
    ],
)
def test_add_argument(before: str, first: bool, after: str) -> None:
    assert edited(before, lambda source, call: edits.add_argument(source, call, "N", first=first)) == after


def around(code: str, function: str, new: str = "new()\nmore()") -> str:
    source = SourceFile("a.py", code)
    statement = next(node for node in source.nodes(ast.Expr) if source.segment(node) == "f()")
    return apply_edits(code, [getattr(edits, function)(source, statement, new)])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if a:\n    f()\n    g()\n", "if a:\n    f()\n    new()\n    more()\n    g()\n"),
        ("if a:\n\tf()\r\n\tg()", "if a:\n\tf()\r\n\tnew()\n\tmore()\n\tg()"),
        ("f()", "f()\nnew()\nmore()"),
        ("f(); g()\n", "f(); new(); more(); g()\n"),
        ("if a: f()\n", "if a: f(); new(); more()\n"),
        ("f()  # why\ng()\n", "f()  # why\nnew()\nmore()\ng()\n"),
    ],
)
def test_insert_after(before: str, after: str) -> None:
    assert around(before, "insert_after") == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("if a:\n    f()\n", "if a:\n    new()\n    more()\n    f()\n"),
        ("g(); f()\n", "g(); new(); more(); f()\n"),
        ("if a: f()\n", "if a: new(); more(); f()\n"),
    ],
)
def test_insert_before(before: str, after: str) -> None:
    assert around(before, "insert_before") == after


def test_insert_before_a_decorated_function() -> None:
    source = SourceFile("a.py", "@d\ndef f(): pass\n")
    edit = edits.insert_before(source, source.tree.body[0], "import x")
    assert apply_edits(source.text, [edit]) == "import x\n@d\ndef f(): pass\n"


def test_line_ends_are_kept() -> None:
    assert around("g()\r\nf()\r\n", "insert_after", "new()") == "g()\r\nf()\r\nnew()\r\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("g()\nf()\nh()\n", "g()\nh()\n"),
        ("g()\nf()", "g()\n"),
        ("if a:\n    f()\n", "if a:\n    pass\n"),
        ("if a:\n    g()\nelse:\n    f()\n", "if a:\n    g()\nelse:\n    pass\n"),
        ("f(); g()\n", "g()\n"),
    ],
)
def test_delete_statement(before: str, after: str) -> None:
    source = SourceFile("a.py", before)
    statement = next(node for node in source.nodes(ast.Expr) if source.segment(node) == "f()")
    assert apply_edits(before, [edits.delete_statement(source, statement)]) == after


def test_wrap_adds_parentheses_where_they_are_needed() -> None:
    source = SourceFile("a.py", "x = a + b\ny = c\n")
    sums = source.nodes(ast.BinOp)
    names = [node for node in source.nodes(ast.Name) if node.id == "c"]
    changes = [edits.wrap(source, node, "", ".float()") for node in (*sums, *names)]
    assert apply_edits(source.text, changes) == "x = (a + b).float()\ny = c.float()\n"


def test_dedent_tail() -> None:
    code = "with a:\n    b()\n    # note\n    f()\n    x = '''\n    kept\n'''\n\n    g()\nh()\n"
    source = SourceFile("a.py", code)
    block = source.nodes(ast.With)[0]
    edit = edits.dedent_tail(source, block, block.body[1])
    assert edit is not None
    assert apply_edits(code, [edit]) == "with a:\n    b()\n# note\nf()\nx = '''\n    kept\n'''\n\ng()\nh()\n"
    assert edits.dedent_tail(source, block, block.body[0]) is None


def test_edits_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        apply_edits("abcdef", [Edit(1, 1, 1, 4, "x"), Edit(1, 3, 1, 5, "y")])
    with pytest.raises(ValueError, match="line 9"):
        apply_edits("abc", [Edit(9, 1, 9, 1, "x")])
    assert apply_edits("abc", [Edit(1, 1, 1, 2, "x"), Edit(1, 1, 1, 2, "x")]) == "xbc"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Doc."""\nx = 1\n', '"""Doc."""\nimport torch\nx = 1\n'),
        ("import os\nimport sys\n\nx = 1\n", "import os\nimport sys\nimport torch\n\nx = 1\n"),
        ("x = 1\n", "import torch\nx = 1\n"),
        ("import torch\nx = 1\n", "import torch\nx = 1\n"),
        ("import os", "import os\nimport torch\n"),
        ("from __future__ import a\r\nx = 1\r\n", "from __future__ import a\r\nimport torch\r\nx = 1\r\n"),
    ],
)  # fmt: skip
def test_add_import(before: str, after: str) -> None:
    assert add_import(before, "import torch") == after


def finding(fix: Fix | None, line: int = 1) -> Finding:
    return Finding("AMP999", "name", Severity.ERROR, "message", Location("a.py", line), fix=fix)


def test_choose_fixes() -> None:
    a = Fix("a", (Edit(1, 1, 1, 3, "x"),))
    overlapping = Fix("b", (Edit(1, 2, 1, 4, "y"),))
    unsafe = Fix("c", (Edit(3, 1, 3, 2, "z"),), Safety.UNSAFE)
    found = [finding(a), finding(a, 2), finding(overlapping, 3), finding(unsafe, 4), finding(None, 5)]
    assert choose_fixes(found, unsafe=False) == [a]
    assert choose_fixes(found, unsafe=True) == [a, unsafe]


def test_a_fix_that_breaks_the_file_is_dropped() -> None:
    broken = Fix("break", (Edit(1, 1, 1, 2, "((("),))
    result = fix_until_stable("a.py", "x = 1\n", lambda text: TextReport((finding(broken),)), unsafe=False)
    assert (result.text, result.made) == ("x = 1\n", 0)


def test_a_fix_after_which_linting_fails_is_dropped() -> None:
    def lint(text: str) -> TextReport:
        if text == "x = 1\n":
            return TextReport((finding(Fix("two", (Edit(1, 5, 1, 6, "2"),))),))
        return TextReport(errors=(FileError("a.py", "broken"),))

    result = fix_until_stable("a.py", "x = 1\n", lint, unsafe=False)
    assert (result.text, result.made) == ("x = 1\n", 0)
    assert len(result.left.findings) == 1


def test_fixes_that_never_settle_end() -> None:
    def lint(text: str) -> TextReport:
        return TextReport((finding(Fix("longer", (Edit(1, 1, 1, 1, "#"),))),))

    result = fix_until_stable("a.py", "x\n", lint, unsafe=False)
    assert result.made == 10
