"""Findings as SARIF 2.1.0 (OASIS), which code hosts and editors read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from amptune import __version__
from amptune.core.finding import Edit, FileError, Finding, Location, Severity
from amptune.core.registry import LoadedRule

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def render(findings: Sequence[Finding], errors: Sequence[FileError] = (), *, rules: Sequence[LoadedRule] = ()) -> str:
    """The report as one SARIF run. ``rules`` are described in it, findings or not."""
    described = {rule.code: i for i, rule in enumerate(rules)}
    run = {
        "tool": {
            "driver": {
                "name": "amptune",
                "version": __version__,
                "informationUri": "https://pypi.org/project/amptune/",
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"SRCROOT": {"description": {"text": "the working directory of the run"}}},
        "invocations": [
            {
                "executionSuccessful": not errors,
                "toolExecutionNotifications": [_notification(error) for error in errors],
            }
        ],
        "results": _results(findings, described),
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1, ensure_ascii=False) + "\n"


def _rule(rule: LoadedRule) -> dict[str, Any]:
    summary = (rule.cls.__doc__ or rule.cls.name).strip().splitlines()[0]
    return {
        "id": rule.code,
        "name": rule.cls.name,
        "shortDescription": {"text": summary},
        "defaultConfiguration": {"level": _LEVELS[rule.cls.severity], "enabled": rule.cls.default_enabled},
        "properties": {"origin": rule.origin},
    }


def _results(findings: Sequence[Finding], described: dict[str, int]) -> list[dict[str, Any]]:
    seen: dict[str, int] = {}
    results = []
    for finding in findings:
        identity = f"{finding.rule} {finding.location.path} {finding.message}".encode(errors="surrogateescape")
        print_ = hashlib.sha256(identity).hexdigest()[:32]
        seen[print_] = seen.get(print_, -1) + 1
        result: dict[str, Any] = {
            "ruleId": finding.rule,
            "level": _LEVELS[finding.severity],
            "message": {"text": finding.message},
            "locations": [_location(finding)],
            "partialFingerprints": {"amptune/v1": f"{print_}:{seen[print_]}"},
        }
        if finding.rule in described:
            result["ruleIndex"] = described[finding.rule]
        if finding.fix and "cell" not in finding.evidence:
            result["fixes"] = [_fix(finding)]
        results.append(result)
    return results


def _location(finding: Finding) -> dict[str, Any]:
    place = finding.location
    physical: dict[str, Any] = {"artifactLocation": _artifact(place.path)}
    found: dict[str, Any] = {"physicalLocation": physical}
    cell = finding.evidence.get("cell")
    if cell is None:
        physical["region"] = _region(place)
    logical = f"cell {cell}, line {place.line}" if cell is not None else finding.site
    if logical:
        found["logicalLocations"] = [{"fullyQualifiedName": logical}]
    return found


def _artifact(path: str) -> dict[str, str]:
    absolute = path.startswith("/")
    return {
        "uri": ("file://" if absolute else "") + quote(os.fsencode(path)),
        **({} if absolute else {"uriBaseId": "SRCROOT"}),
    }


def _region(place: Location | Edit) -> dict[str, int]:
    return {
        "startLine": place.line,
        "startColumn": place.column,
        "endLine": place.end_line,
        "endColumn": max(place.end_column, 1),
    }


def _fix(finding: Finding) -> dict[str, Any]:
    assert finding.fix is not None
    replacements = [
        {"deletedRegion": _region(edit), "insertedContent": {"text": edit.text}} for edit in finding.fix.edits
    ]
    return {
        "description": {"text": finding.fix.message},
        "artifactChanges": [
            {"artifactLocation": _artifact(finding.location.path), "replacements": replacements},
        ],
    }


def _notification(error: FileError) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": _artifact(error.path)}
    if error.line:
        physical["region"] = {"startLine": error.line}
    return {
        "level": "error",
        "message": {"text": error.message},
        "locations": [{"physicalLocation": physical}],
    }
