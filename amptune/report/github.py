"""Findings as workflow commands, which GitHub shows as annotations on the changed lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amptune.core.finding import FileError, Finding, Severity

_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def render(findings: Sequence[Finding], errors: Sequence[FileError] = ()) -> str:
    """One line a finding: ``::error file=model.py,line=3,...,title=AMP101 (clip-without-unscale)::message``."""
    lines = [_finding(finding) for finding in findings]
    for error in errors:
        fields = {"file": error.path, **({"line": str(error.line)} if error.line else {}), "title": "amptune"}
        lines.append(_command("error", fields, error.message))
    return "".join(f"{line}\n" for line in lines)


def _finding(finding: Finding) -> str:
    place = finding.location
    fields = {"file": place.path}
    if "cell" not in finding.evidence:  # lines of a notebook's cell are no lines of its file
        fields |= {"line": str(place.line), "endLine": str(place.end_line)}
        if place.line == place.end_line:  # GitHub wants columns on one line only, and includes the last one
            fields |= {"col": str(place.column), "endColumn": str(max(place.column, place.end_column - 1))}
    fields["title"] = f"{finding.rule} ({finding.name})"
    where = f"cell {finding.evidence['cell']}, line {place.line}: " if "cell" in finding.evidence else ""
    site = f"{finding.site}: " if finding.site else ""
    return _command(_COMMANDS[finding.severity], fields, f"{where}{site}{finding.message}")


def _command(name: str, fields: Mapping[str, str], message: str) -> str:
    properties = ",".join(f"{key}={_escape(value, in_property=True)}" for key, value in fields.items())
    return f"::{name} {properties}::{_escape(message)}"


def _escape(text: str, in_property: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if in_property else text
