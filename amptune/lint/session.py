"""One lint run: rules, files, per-file ignores, fixes, baseline. The command line only parses and prints."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from amptune.config import Config
from amptune.core.finding import FileError, Finding, Safety
from amptune.core.registry import LoadedRule, check_selector, select_rules
from amptune.core.rule import SourceRule
from amptune.errors import InputError
from amptune.lint.check import TextReport, report_text
from amptune.lint.discover import Discovery, display
from amptune.lint.local_rules import load_source_rules
from amptune.lint.notebook import read_notebook, with_local_edits
from amptune.lint.read import decode, encode
from amptune.lint.runner import Linter

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

    from amptune.lint.cache import ResultCache
    from amptune.lint.fixing import FixedText

_NEWLINE = re.compile(r"\r\n|\r|\n")


@dataclasses.dataclass(frozen=True)
class LintOptions:
    """What one run is asked to do.

    Attributes:
        paths: files and folders.
        config: the project's settings.
        select, ignore: codes or prefixes in force (command line and settings together).
        stdin: bytes to lint in place of paths, under the name ``stdin_name``.
        fix, unsafe: make safe fixes; make unsafe ones too.
        write: write fixed files; otherwise only the diff is made.
        baseline, write_baseline: file of known findings; whether to write it.
        cache, jobs: as the flags.
    """

    paths: tuple[str, ...]
    config: Config
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    stdin: bytes | None = None
    stdin_name: str = "stdin.py"
    fix: bool = False
    unsafe: bool = False
    write: bool = True
    baseline: Path | None = None
    write_baseline: bool = False
    cache: bool = True
    jobs: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a run. ``notes`` are for standard error; ``fixed_stdin`` is the fixed standard input."""

    findings: tuple[Finding, ...]
    errors: tuple[FileError, ...]
    files: int
    fixes_made: int = 0
    files_changed: int = 0
    diff: str = ""
    fixed_stdin: str | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass
class _Fixes:
    made: int = 0
    changed: int = 0
    diff: str = ""
    stdin: str | None = None

    def add(self, name: str, before: str, result: FixedText) -> None:
        """Count the fixes of one file."""
        from amptune.lint.fixing import unified_diff

        self.made += result.made
        if result.text != before:
            self.changed += 1
            self.diff += unified_diff(name, before, result.text)


class LintSession:
    """Loads the rules and runs them.

    Raises:
        ConfigError: a selector that matches no rule, or a rule that does not load.
    """

    def __init__(self, options: LintOptions) -> None:
        self._options = options
        config = options.config
        loaded = load_source_rules(config.rule_paths, config.root)
        self.rules: list[LoadedRule] = select_rules(loaded, options.select, options.ignore)
        for _, codes in config.per_file_ignores:
            for code in codes:
                check_selector(code, loaded)
        self._instances = [rule.cls() for rule in self.rules if issubclass(rule.cls, SourceRule)]
        self._lines: dict[str, list[str]] = {}

    def run(self) -> Outcome:
        """Lint, fix and compare with the baseline.

        Raises:
            InputError: the baseline cannot be read or written.
        """
        options = self._options
        fixes = _Fixes()
        if options.stdin is not None:
            reports = {options.stdin_name: self._lint_stdin(options.stdin, fixes)}
            errors: list[FileError] = []
        else:
            reports, errors = self._lint_files(fixes)
        findings = [found for file, report in reports.items() for found in self._shown(file, report)]
        findings.sort(key=lambda finding: finding.sort_key)
        errors += [error for report in reports.values() for error in report.errors]
        notes: list[str] = []
        if not reports and not errors:
            notes.append(f"no Python, notebook or settings file found in {' '.join(options.paths)}")
        if options.baseline is not None:
            findings = self._against_baseline(options.baseline, findings, notes)
        return Outcome(
            tuple(findings), tuple(sorted(errors)), len(reports), fixes.made, fixes.changed, fixes.diff, fixes.stdin,
            tuple(notes),
        )  # fmt: skip

    def lines(self, path: str) -> Sequence[str]:
        """Lines of a linted file or cell by ``Finding.source_path``; [] when it cannot be read."""
        if path not in self._lines:
            file, _, cell = path.partition(".ipynb:cell ")
            if cell:
                self._read_cells(f"{file}.ipynb")
            else:
                self._lines[path] = self._read_lines(path)
        return self._lines.setdefault(path, [])

    def _read_lines(self, path: str) -> list[str]:
        try:
            return _NEWLINE.split(decode(path, Path(path).read_bytes()))
        except (OSError, ValueError):
            return []

    def _read_cells(self, path: str) -> None:
        try:
            notebook = read_notebook(path, "\n".join(self.lines(path)))
        except ValueError:
            return  # changed since it was linted
        for cell in notebook.cells:
            self._lines[f"{path}:cell {cell.number}"] = cell.text.split("\n")

    def _shown(self, file: str, report: TextReport) -> Sequence[Finding]:
        """The findings of a file as they are reported: those of a notebook with edits in lines of the cell."""
        if not file.endswith(".ipynb") or not any(finding.fix for finding in report.findings):
            return report.findings
        try:
            notebook = read_notebook(file, "\n".join(self.lines(file)))
        except ValueError:
            return report.findings  # changed since it was linted
        return with_local_edits(notebook, report.findings)

    def _lint_stdin(self, data: bytes, fixes: _Fixes) -> TextReport:
        name = self._options.stdin_name
        try:
            text = decode(name, data)
        except ValueError as error:
            fixes.stdin = "" if self._options.fix else None
            return TextReport(errors=(FileError(name, str(error)),))
        if self._options.fix:
            result = self._fix(name, text)
            fixes.add(name, text, result)
            text, report = result.text, result.left
            fixes.stdin = text if self._options.write else None
        else:
            report = self._report(name, text)
        self._lines[name] = _NEWLINE.split(text)
        return report

    def _lint_files(self, fixes: _Fixes) -> tuple[dict[str, TextReport], list[FileError]]:
        options = self._options
        discovery = Discovery(options.config.root, options.config.exclude, options.config.respect_gitignore)
        files = discovery.find(options.paths)
        reports = Linter(self._instances, self._cache(), options.jobs).lint(files)
        reports = {file: self._without_ignored(file, report) for file, report in reports.items()}
        if options.fix:
            for file, report in reports.items():
                if any(_may_fix(finding, options.unsafe) for finding in report.findings):
                    reports[file] = self._fix_file(file, fixes)
        return reports, discovery.errors

    def _cache(self) -> ResultCache | None:
        if not self._options.cache:
            return None
        from amptune.lint.cache import ResultCache

        return ResultCache(self._instances)

    def _fix_file(self, file: str, fixes: _Fixes) -> TextReport:
        from amptune.core.files import write_atomic

        path = Path(os.path.realpath(file))  # replacing a link would leave the file behind it as it was
        try:
            data = path.read_bytes()
            text = decode(file, data)
        except (OSError, ValueError) as error:
            return TextReport(errors=(FileError(display(file), f"cannot be read: {error}"),))
        result = self._fix(display(file), text)
        if self._options.write and result.text != text:
            try:
                write_atomic(path, encode(file, result.text, data))
            except InputError as error:
                return TextReport(errors=(FileError(display(file), f"cannot be fixed: {error.message}"),))
        fixes.add(display(file), text, result)
        return result.left

    def _fix(self, name: str, text: str) -> FixedText:
        from amptune.lint.fixing import fix_until_stable

        return fix_until_stable(name, text, lambda current: self._report(name, current), self._options.unsafe)

    def _report(self, name: str, text: str) -> TextReport:
        return self._without_ignored(name, report_text(name, text, self._instances))

    def _without_ignored(self, file: str, report: TextReport) -> TextReport:
        if not report.findings or not self._per_file:
            return report
        relative = os.path.relpath(os.path.abspath(file), self._options.config.root).replace(os.sep, "/")
        codes = tuple(code for spec, codes in self._per_file if spec.match_file(relative) for code in codes)
        kept = tuple(finding for finding in report.findings if not finding.rule.startswith(codes))
        return dataclasses.replace(report, findings=kept) if codes else report

    @cached_property
    def _per_file(self) -> list[tuple[GitIgnoreSpec, tuple[str, ...]]]:
        if not self._options.config.per_file_ignores:
            return []
        from pathspec import GitIgnoreSpec

        return [(GitIgnoreSpec.from_lines([glob]), codes) for glob, codes in self._options.config.per_file_ignores]

    def _against_baseline(self, path: Path, findings: list[Finding], notes: list[str]) -> list[Finding]:
        from amptune.lint.baseline import without_known, write_baseline

        root = self._options.config.root
        if self._options.write_baseline:
            write_baseline(path, findings, root, self.lines)
            notes.append(f"{len(findings)} known findings written to {path}")
            return []
        left, gone = without_known(findings, path, root, self.lines)
        if gone:
            notes.append(f"{gone} findings of the baseline {path} no longer occur: write it anew with --write-baseline")
        return left


def _may_fix(finding: Finding, unsafe: bool) -> bool:
    return finding.fix is not None and (unsafe or finding.fix.safety is Safety.SAFE)
