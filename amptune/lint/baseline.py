"""Known findings of old code, kept in a file so that only new ones are reported."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from amptune.core.files import write_atomic
from amptune.core.finding import Finding
from amptune.errors import InputError

Lines = Callable[[str], Sequence[str]]
_VERSION = 1
_Key = tuple[str, str, str]  # path, rule, the flagged line without its indentation


def write_baseline(path: Path, findings: Sequence[Finding], root: Path, lines: Lines) -> None:
    """Record findings. They are known again by file, rule and text of the line, so that moved code stays known.

    Args:
        path: the file to write.
        findings: what to record.
        root: folder that the recorded paths are relative to, so that a run from any folder knows them.
        lines: the lines of a file or cell by ``Finding.source_path``; [] when it cannot be read.

    Raises:
        InputError: the file cannot be written.
    """
    counts = Counter(_key(finding, root, lines) for finding in findings)
    entries = [
        {"path": file, "rule": rule, "line": text, "count": count}
        for (file, rule, text), count in sorted(counts.items())
    ]
    write_atomic(path, json.dumps({"version": _VERSION, "findings": entries}, indent=1) + "\n")


def without_known(findings: Sequence[Finding], path: Path, root: Path, lines: Lines) -> tuple[list[Finding], int]:
    """The findings that the baseline does not hold, and how many of its entries no longer occur.

    Raises:
        InputError: the file is missing, or no baseline of this version.
    """
    known = _read(path)
    left = []
    for finding in findings:
        key = _key(finding, root, lines)
        if known[key] > 0:
            known[key] -= 1
        else:
            left.append(finding)
    return left, sum(count for count in known.values() if count > 0)


def _read(path: Path) -> Counter[_Key]:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != _VERSION:
            raise InputError(f"{path} is a baseline of version {data['version']}; this amptune reads {_VERSION}")
        return Counter({(e["path"], e["rule"], e["line"]): int(e["count"]) for e in data["findings"]})
    except OSError as error:
        hint = f"write it with: amptune lint --baseline {path} --write-baseline"
        raise InputError(f"cannot read the baseline {path}: {error.strerror or error}", hint=hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a baseline: {error}") from error


def _key(finding: Finding, root: Path, lines: Lines) -> _Key:
    place = finding.location
    text = lines(finding.source_path)
    line = text[place.line - 1].strip() if 0 < place.line <= len(text) else ""
    relative = os.path.relpath(os.path.abspath(place.path), root).replace(os.sep, "/")
    return (relative, finding.rule, line or finding.message)
