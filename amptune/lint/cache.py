"""Results by content: a file that was linted before with the same rules is not read into a tree again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from amptune import __version__
from amptune.core.finding import FileError, Finding
from amptune.core.rule import SourceRule
from amptune.errors import InputError
from amptune.lint.check import TextReport
from amptune.lint.discover import display

_MAX_ENTRIES = 50_000


class ResultCache:
    """Reports by content hash, in one file of the user's cache folder for each set of rules.

    The file name is a hash of amptune's version, the Python version (whose parser decides what is valid), the rules and
    their sources; so a new release, or a rule that is being edited, starts afresh. A damaged file counts as empty, and
    a cache folder that cannot be written costs time only.
    """

    def __init__(self, rules: Sequence[SourceRule], folder: Path | None = None) -> None:
        from amptune.core.files import cache_folder

        self._path = (folder or cache_folder()) / f"lint-{_fingerprint(rules)}.json"
        self._entries: dict[str, Any] = self._load()
        self._added: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @staticmethod
    def key(path: str, data: bytes) -> str:
        """The key of a file: its content and its suffix, which decides how it is read."""
        return hashlib.blake2b(data, digest_size=16).hexdigest() + os.path.splitext(path)[1]

    def get(self, key: str, path: str) -> TextReport | None:
        """The report of a file with this content, for the file at ``path``."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry == 0:
            return TextReport()
        path = display(path)
        findings = tuple(Finding.from_json({**item, "path": path}) for item in entry["findings"])
        return TextReport(findings, tuple(FileError(path, e["message"], e.get("line", 0)) for e in entry["errors"]))

    def add(self, key: str, report: TextReport) -> None:
        """Remember a report."""
        clean = not report.findings and not report.errors
        self._added[key] = (
            0
            if clean
            else {
                "findings": [finding.to_json() for finding in report.findings],
                "errors": [error.to_json() for error in report.errors],
            }
        )

    def save(self) -> None:
        """Write what was added; when the file would grow too large, only what was added is kept."""
        if not self._added:
            return
        merged = {**self._entries, **self._added}
        kept = merged if len(merged) <= _MAX_ENTRIES else self._added
        from amptune.core.files import write_atomic

        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(kept, separators=(",", ":")))
        except (OSError, InputError):
            return  # a read-only home: the next run is slow again, and nothing else changes

    def _load(self) -> dict[str, Any]:
        try:
            data = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}


def _fingerprint(rules: Iterable[SourceRule]) -> str:
    digest = hashlib.blake2b(f"{__version__} {sys.version_info[:2]}".encode(), digest_size=12)
    files = {os.path.join(os.path.dirname(__file__), name) for name in os.listdir(os.path.dirname(__file__))}
    for rule in rules:
        digest.update(f"{rule.code} {type(rule).__module__} {rule.severity}\n".encode())
        files.add(getattr(sys.modules.get(type(rule).__module__), "__file__", None) or "")
    folders = {os.path.dirname(file) for file in files if file}
    helpers = {os.path.join(folder, name) for folder in folders for name in os.listdir(folder) if name[:1] == "_"}
    for file in sorted(files | helpers):
        if file.endswith(".py"):
            status = os.stat(file)
            digest.update(f"{file} {status.st_mtime_ns} {status.st_size}\n".encode())
    return digest.hexdigest()
