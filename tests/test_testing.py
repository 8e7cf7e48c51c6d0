"""What amptune.testing promises to authors of rules: it fails when it should."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from amptune import testing
from amptune.core.finding import Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune.testing import Case, Mark, check_case, check_documentation, read_marks, rule_cases, sections


class NoEval(SourceRule):
    """eval is called.

    ## What it does
    Flags eval.

    ## Why is this bad
    It runs text.

    ## Example
    ```python
    eval("1")
    ```

    ## Use instead
    ```python
    int("1")
    ```

    ## Fix safety
    Unsafe.

    ## References
    - none
    """

    code = "ACME001"
    name = "eval"
    severity = Severity.ERROR
    keywords = (b"eval(",)
    INVALID = (Example("plain", 'x = eval("1")  # <- ACME001@5\n', fixed='x = int("1")\n'),)
    VALID = (Example("int", 'x = int("1")\n'),)

    def check(self, source: SourceFile) -> Iterator[Finding]:
        for call in source.calls("eval"):
            assert isinstance(call.func, ast.Name)
            fix = Fix("use int", (edits.replace(source, call.func, "int"),), Safety.UNSAFE)
            yield source.finding(self, call, "eval", fix=fix)


@pytest.fixture(autouse=True)
def only_this_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from amptune_rules.source.amp401_deprecated_cuda_amp import DeprecatedCudaAmp

    monkeypatch.setattr(testing, "_all_rules", lambda: (NoEval(), DeprecatedCudaAmp()))


def check(source: str, valid: bool = False, fixed: str | None = None) -> None:
    check_case(Case(NoEval, Example("case", source, fixed=fixed), valid))


def test_good_examples_pass() -> None:
    check_case(Case(NoEval, NoEval.INVALID[0], valid=False))
    check_case(Case(NoEval, NoEval.VALID[0], valid=True))
    check_documentation(NoEval)


@pytest.mark.parametrize(
    ("source", "valid", "fixed", "message"),
    [
        ('eval("1")\n', False, 'int("1")\n', "a valid example is marked, or an invalid one is not"),
        ('eval("1")  # <- ACME001\n', True, None, "a valid example is marked"),
        (
            'eval("1")\nx = 1  # <- ACME001\n',
            False,
            None,
            r"missing: \[\(2, 'ACME001'\)\]\nunexpected: \[\(1, 'ACME001'\)\]",
        ),
        ('eval("1"), eval("2")  # <- ACME001\n', False, None, r"unexpected: \[\(1, 'ACME001'\)\]"),
        ('x = eval("1")  # <- ACME001@4\n', False, 'x = int("1")\n', "wrong column"),
        ('eval("1")  # <- ACME001\nimport torch\ntorch.cuda.amp.GradScaler()\n', False, None, "unexpected.*AMP401"),
        ('eval("1")  # <- ACME001, AMP401\n', False, None, "missing.*AMP401"),
        ('eval("1")  # <- ACME001\n', False, None, "a fix without `fixed=`"),
        ('eval("1")  # <- ACME001\n', False, 'str("1")\n', "fixed text differs"),
        ('x = eval("1")\n', True, None, "unexpected"),
    ],
)
def test_bad_examples_fail(source: str, valid: bool, fixed: str | None, message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s){message}"):
        check(source, valid, fixed)


def test_cross_fires_may_be_marked() -> None:
    check('import torch\ntorch.cuda.amp.GradScaler(eval("1"))  # <- ACME001, AMP401@1\n', fixed=(
        'import torch\ntorch.cuda.amp.GradScaler(int("1"))\n'
    ))  # fmt: skip


def test_marks() -> None:
    text, marks = read_marks('{\n "a": 1,  // <- AMP504@3\n "b": "# <- x"\n}\nx  # note  # <- AMP1, AMP101, G102\n')
    assert text == '{\n "a": 1,\n "b": "# <- x"\n}\nx  # note  # <- AMP1, AMP101, G102\n'
    assert marks == [Mark(2, "AMP504", 3)]
    assert read_marks("x  # <- AMP101, G102@2") == ("x", [Mark(1, "AMP101"), Mark(1, "G102", 2)])


def test_case_names() -> None:
    ids = [str(case) for case in rule_cases(["amptune_rules"])]
    assert "AMP101-invalid-plain_loop" in ids
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("## Why is this bad", "## Why", "sections are"),
        ("    It runs text.\n", "", "an empty section"),
        ('eval("1")', 'int("1")', "wanted flagged=True"),
        ('    int("1")', '    eval("1")', "wanted flagged=False"),
        ("```python", "", "without a ``` block"),
    ],
)
def test_documentation_mistakes_fail(old: str, new: str, message: str) -> None:
    assert NoEval.__doc__ is not None
    broken = type("Broken", (NoEval,), {"__doc__": NoEval.__doc__.replace(old, new)})
    with pytest.raises(AssertionError, match=message):
        check_documentation(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"INVALID": ()}, "no invalid example"),
        ({"VALID": ()}, "fewer near misses"),
        ({"name": "No_Eval"}, "not kebab-case"),
        ({"VALID": (Example("plain", "x = 1\n"),)}, "share a name"),
    ],
)
def test_metadata_mistakes_fail(changes: dict[str, object], message: str) -> None:
    broken = type("Broken", (NoEval,), {"__doc__": NoEval.__doc__, **changes})
    with pytest.raises(AssertionError, match=message):
        check_documentation(broken)


def test_sections() -> None:
    assert sections(NoEval)[""] == "eval is called."
    assert sections(NoEval)["References"] == "- none"
