"""Findings as JSON, the form that scripts read (fields are a contract, see DESIGN and the README)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from amptune import __version__
from amptune.core.finding import FileError, Finding

VERSION = 1


def render(
    findings: Sequence[Finding], errors: Sequence[FileError] = (), *, extra: Mapping[str, Any] | None = None
) -> str:
    """The report as one JSON object; ``extra`` are further top-level fields, such as analyze's capture and estimate."""
    data = {
        "version": VERSION,
        "tool": f"amptune {__version__}",
        "findings": [finding.to_json() for finding in findings],
        "errors": [error.to_json() for error in errors],
        **(extra or {}),
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def render_statistics(findings: Sequence[Finding], errors: Sequence[FileError] = ()) -> str:
    """How often each rule fired, as JSON."""
    counts = Counter((finding.rule, finding.name, str(finding.severity)) for finding in findings)
    rows = [
        {"rule": rule, "name": name, "severity": severity, "count": count}
        for (rule, name, severity), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return render((), errors, extra={"statistics": rows})
