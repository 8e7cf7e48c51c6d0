"""Runs rules over one text: Python, notebook or settings file; suppression comments are obeyed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from amptune.core.finding import FileError, Finding
from amptune.core.rule import SourceRule
from amptune.lint.notebook import read_notebook
from amptune.lint.prefilter import prefilter_of
from amptune.lint.settings_file import SUFFIXES, SettingsFile
from amptune.lint.source import SourceFile, parse
from amptune.lint.suppress import UNUSED, find_suppressions, suppress, unknown_findings, unused_findings


@dataclasses.dataclass(frozen=True)
class TextReport:
    """What came of one text."""

    findings: tuple[Finding, ...] = ()
    errors: tuple[FileError, ...] = ()


def check_text(path: str, text: str, rules: Sequence[SourceRule]) -> list[Finding]:
    """Findings of the rules in one text, sorted. The suffix of ``path`` says what the text is.

    Raises:
        ValueError: the text cannot be read as what its suffix says, or a rule failed.
    """
    report = report_text(path, text, rules)
    if report.errors:
        raise ValueError(report.errors[0].message)
    return list(report.findings)


def report_text(
    path: str, text: str, rules: Sequence[SourceRule], asked: Sequence[SourceRule] | None = None
) -> TextReport:
    """Findings and errors of one text. Nothing is raised for a text that cannot be read, or for a rule that fails.

    ``asked`` are the rules that the prefilter found, where it has run. Python that no rule asks for is parsed all the
    same, to say whether it does.
    """
    if asked is None:
        asked = prefilter_of(tuple(rules_for(path, rules)))(text.encode(errors="surrogatepass"))
    if not asked:
        return TextReport() if path.endswith(SUFFIXES) else check_syntax(path, text)
    errors: list[FileError] = []
    try:
        if path.endswith(SUFFIXES):
            found = _check_settings(path, text, asked, errors)
        elif path.endswith(".ipynb"):
            return _check_notebook(path, text, asked)
        else:
            found = _check_python(path, text, asked, errors)
    except SyntaxError as error:
        return TextReport(errors=(_syntax_error(path, error),))
    except ValueError as error:
        return TextReport(errors=(FileError(path, str(error)),))
    return TextReport(tuple(_obey_comments(path, text, _sorted(found), asked, rules)), tuple(errors))


def rules_for(path: str, rules: Sequence[SourceRule]) -> list[SourceRule]:
    """The rules that read files with this suffix: most read code alone, some settings alone, a few both."""
    if path.endswith(SUFFIXES):
        return [rule for rule in rules if _reads_settings(rule) or rule.code == UNUSED]
    return [rule for rule in rules if type(rule).check is not SourceRule.check or not _reads_settings(rule)]


def _reads_settings(rule: SourceRule) -> bool:
    return type(rule).check_settings is not SourceRule.check_settings


def check_syntax(path: str, text: str) -> TextReport:
    """Only whether a Python file or notebook can be read."""
    try:
        if path.endswith(".ipynb"):
            return TextReport(errors=read_notebook(path, text).errors)
        parse(text)
    except SyntaxError as error:
        return TextReport(errors=(_syntax_error(path, error),))
    except ValueError as error:
        return TextReport(errors=(FileError(path, str(error)),))
    return TextReport()


def _syntax_error(path: str, error: SyntaxError) -> FileError:
    return FileError(path, f"does not parse as Python 3: {error.msg}", error.lineno or 0)


def _check_settings(path: str, text: str, rules: Sequence[SourceRule], errors: list[FileError]) -> list[Finding]:
    settings = SettingsFile(path, text)
    return list(_ask(path, rules, lambda rule: rule.check_settings(settings), errors))


def _check_python(path: str, text: str, rules: Sequence[SourceRule], errors: list[FileError]) -> list[Finding]:
    source = SourceFile(path, text)
    found = list(_ask(path, rules, lambda rule: rule.check(source), errors))
    source.forget_shared()
    return found


def _check_notebook(path: str, text: str, rules: Sequence[SourceRule]) -> TextReport:
    notebook = read_notebook(path, text)
    errors = list(notebook.errors)
    found = _sorted(_check_python(path, notebook.text, rules, errors))
    kept = _obey_comments(path, notebook.text, found, rules, rules)
    return TextReport(tuple(notebook.place(finding) for finding in kept), tuple(errors))


def _ask(
    path: str, rules: Iterable[SourceRule], question: Callable[[SourceRule], Iterable[Finding]], errors: list[FileError]
) -> Iterator[Finding]:
    """Findings of each rule; one that fails becomes an error of the file, and the others still run."""
    for rule in rules:
        try:
            yield from _findings(question(rule))
        except RecursionError:
            deep = FileError(path, "nested too deeply for some rules")
            if deep not in errors:
                errors.append(deep)
        except Exception as error:  # a defect of the rule: it must not hide what the others find
            errors.append(FileError(path, f"rule {rule.code} failed: {type(error).__name__}: {error}"))


def _findings(found: Iterable[Finding]) -> list[Finding]:
    """What a rule gave, all of it before any is used."""
    findings = list(found)
    for item in findings:
        if not isinstance(item, Finding):
            raise TypeError(f"it gave {type(item).__name__} in place of a Finding")
    return findings


def _obey_comments(
    path: str, text: str, found: Sequence[Finding], asked: Sequence[SourceRule], rules: Sequence[SourceRule]
) -> list[Finding]:
    comments = find_suppressions(text, python=not path.endswith(SUFFIXES))
    if not comments:
        return list(found)
    kept, unused = suppress(found, comments)
    judge = next((rule for rule in asked if rule.code == UNUSED), None)
    if judge is not None:
        active = {rule.code for rule in rules}
        kept += unused_findings(path, text, unused, judge, active)
        kept += unknown_findings(path, comments, judge, active)
    return _sorted(kept)


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    """In the order of a report, and one finding of a rule at one place."""
    found: dict[tuple[object, ...], Finding] = {}
    for finding in findings:
        found.setdefault((*finding.sort_key, finding.location.end_line, finding.location.end_column), finding)
    return sorted(found.values(), key=lambda finding: finding.sort_key)
