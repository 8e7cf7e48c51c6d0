"""What a rule reports: a Finding with its place, its evidence and, where one is known, its fix."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any


class Severity(enum.IntEnum):
    """How bad a finding is: errors raise, give NaN or infinity, or silently train wrong; speed is never an error."""

    INFO = 0
    WARNING = 1
    ERROR = 2

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Severity:
        """The severity called ``text``; raises ValueError with the known names."""
        try:
            return cls[text.upper()]
        except KeyError:
            raise ValueError(f"unknown severity {text!r}; known: info, warning, error") from None


@dataclasses.dataclass(frozen=True, order=True)
class Location:
    """A span of source text. Lines and columns are 1-based, the end is exclusive, columns count characters."""

    path: str
    line: int
    column: int = 1
    end_line: int = 0
    end_column: int = 0

    def __post_init__(self) -> None:
        if self.end_line < self.line:
            object.__setattr__(self, "end_line", self.line)
            object.__setattr__(self, "end_column", max(self.end_column, self.column))

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}"


@dataclasses.dataclass(frozen=True)
class Edit:
    """Replace the text of a span (1-based, end exclusive; empty span = insert) by ``text``."""

    line: int
    column: int
    end_line: int
    end_column: int
    text: str


class Safety(enum.StrEnum):
    """Whether a fix keeps the program's meaning (safe) or needs a person to look (unsafe)."""

    SAFE = "safe"
    UNSAFE = "unsafe"


@dataclasses.dataclass(frozen=True)
class Fix:
    """A rewrite that cures a finding.

    ``edits`` do not overlap. ``imports`` are lines that the file must also have, such as ``import torch``.
    """

    message: str
    edits: tuple[Edit, ...]
    safety: Safety = Safety.SAFE
    imports: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form in lint's and analyze's JSON."""
        return {
            "message": self.message,
            "safety": str(self.safety),
            "edits": [dataclasses.asdict(edit) for edit in self.edits],
            "imports": list(self.imports),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fix:
        """The fix that ``to_json`` gave."""
        edits = tuple(Edit(**edit) for edit in data["edits"])
        return cls(data["message"], edits, Safety(data["safety"]), tuple(data["imports"]))


@dataclasses.dataclass(frozen=True)
class Finding:
    """One defect at one place. ``message`` names the number that is wrong and the number that is right."""

    rule: str
    name: str
    severity: Severity
    message: str
    location: Location
    site: str | None = None
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    fix: Fix | None = None

    def to_json(self) -> dict[str, Any]:
        """The form in lint's and analyze's JSON (field names are a contract, see the README)."""
        return {
            "rule": self.rule,
            "name": self.name,
            "severity": str(self.severity),
            "message": self.message,
            "path": self.location.path,
            "line": self.location.line,
            "column": self.location.column,
            "end_line": self.location.end_line,
            "end_column": self.location.end_column,
            "site": self.site,
            "evidence": dict(self.evidence),
            "fix": self.fix.to_json() if self.fix else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Finding:
        """The finding that ``to_json`` gave."""
        place = Location(data["path"], data["line"], data["column"], data["end_line"], data["end_column"])
        fix = Fix.from_json(data["fix"]) if data["fix"] else None
        severity = Severity.parse(data["severity"])
        return cls(data["rule"], data["name"], severity, data["message"], place, data["site"], data["evidence"], fix)

    @property
    def sort_key(self) -> tuple[str, int, int, int, str]:
        """Order of a report: by file, cell of a notebook, line, column, rule."""
        place = self.location
        return (place.path, self.evidence.get("cell", 0), place.line, place.column, self.rule)

    @property
    def source_path(self) -> str:
        """What the line and column are in: the path, or ``nb.ipynb:cell 2`` in a notebook."""
        cell = self.evidence.get("cell")
        return f"{self.location.path}:cell {cell}" if cell else self.location.path


@dataclasses.dataclass(frozen=True, order=True)
class FileError:
    """A file that could not be read or parsed: reported beside the findings, and exit code 2."""

    path: str
    message: str
    line: int = 0

    def to_json(self) -> dict[str, Any]:
        """The form in the ``errors`` list of the JSON report."""
        return {"path": self.path, "message": self.message, **({"line": self.line} if self.line else {})}
