"""Findings for people: place, message, the source line with a caret, and a summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from amptune.core.finding import FileError, Finding, Safety, Severity

Lines = Callable[[str], Sequence[str]]
_COLORS = {Severity.ERROR: "31", Severity.WARNING: "33", Severity.INFO: "36"}
_MAX_WIDTH = 160


def render(
    findings: Sequence[Finding], errors: Sequence[FileError] = (), *, lines: Lines | None = None, color: bool = False,
    files: int | None = None,
) -> str:  # fmt: skip
    """The report as text that ends in a line end; "" when there is nothing to say.

    Args:
        findings: in the order to show them.
        errors: files that could not be read.
        lines: the lines of a file, or of a notebook's cell, by ``Finding.source_path``; [] for one that is not there.
            None shows no source.
        color: use ANSI colours.
        files: how many files were looked at, for the summary; None leaves the summary out.
    """
    blocks = [_finding(finding, lines, color) for finding in findings]
    blocks += [_error(error, color) for error in errors]
    if files is not None:
        blocks.append(_summary(findings, errors, files))
    return "".join(f"{block}\n" for block in blocks)


def render_statistics(findings: Sequence[Finding]) -> str:
    """How often each rule fired, most often first; ``[*]`` marks rules with a fix."""
    counts = Counter((finding.rule, finding.name, finding.severity) for finding in findings)
    fixable = {finding.rule for finding in findings if finding.fix}
    rows = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return "".join(
        f"{count:6d}  {rule:8s} {severity!s:8s} {'[*]' if rule in fixable else '   '} {name}\n"
        for (rule, name, severity), count in rows
    )


def place_text(finding: Finding) -> str:
    """Where a finding is: ``model.py:3:5``, ``nb.ipynb:cell 2:3:5`` in a notebook."""
    place = finding.location
    return f"{finding.source_path}:{place.line}:{place.column}"


def _finding(finding: Finding, lines: Lines | None, color: bool) -> str:
    severity = _paint(str(finding.severity), _COLORS[finding.severity], color)
    code = _paint(finding.rule, "1", color)
    site = f" at {finding.site}" if finding.site else ""
    head = f"{place_text(finding)}: {severity} {code}{site}: {finding.message} [{finding.name}]"
    parts = [head]
    if lines is not None:
        parts += _excerpt(finding, lines(finding.source_path), color)
    if finding.fix:
        flag = "--fix" if finding.fix.safety is Safety.SAFE else "--unsafe-fixes"
        parts.append(f"  = fix ({flag}): {finding.fix.message}")
    return "\n".join(parts)


def _excerpt(finding: Finding, lines: Sequence[str], color: bool) -> list[str]:
    place = finding.location
    if not 0 < place.line <= len(lines):
        return []
    line = lines[place.line - 1]
    end = place.end_column if place.end_line == place.line else len(line) + 1
    start = place.column - 1
    first = max(0, start - _MAX_WIDTH // 2) if len(line) > _MAX_WIDTH else 0
    shown = line[first : first + _MAX_WIDTH].rstrip()
    # Tabs stay tabs under the line, so that the caret stands right however wide they are shown.
    margin = "".join("\t" if character == "\t" else " " for character in line[first:start])
    width = max(1, min(end - 1 - start, len(shown) - (start - first)))
    number = f"{place.line}"
    caret = _paint("^" * width, _COLORS[finding.severity], color)
    return [f"  {number} | {shown}", f"  {' ' * len(number)} | {margin}{caret}"]


def _error(error: FileError, color: bool) -> str:
    line = f":{error.line}" if error.line else ""
    return f"{error.path}{line}: {_paint('cannot be linted', '31', color)}: {error.message}"


def _summary(findings: Sequence[Finding], errors: Sequence[FileError], files: int) -> str:
    counts = Counter(finding.severity for finding in findings)
    said = [_count(counts[severity], str(severity)) for severity in sorted(counts, reverse=True)]
    if errors:
        said.append(f"{_count(len(errors), 'file')} not linted")
    fixable = sum(1 for finding in findings if finding.fix and finding.fix.safety is Safety.SAFE)
    tail = f"; {fixable} fixable with --fix" if fixable else ""
    if not files and errors:  # no file could be linted, so nothing is said about any
        return ", ".join(said)
    return f"{', '.join(said) or 'no findings'} in {_count(files, 'file')}{tail}"


def _count(number: int, noun: str) -> str:
    if noun == "info":
        return f"{number} info"
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _paint(text: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color else text
