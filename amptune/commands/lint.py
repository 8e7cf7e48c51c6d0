"""``amptune lint``: mixed precision bugs in source files, notebooks and settings files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from amptune.commands.streams import show_any_name, takes_color
from amptune.commands.values import codes
from amptune.config import FAIL_ON, Config, load_config
from amptune.core.finding import FileError, Finding, Severity
from amptune.errors import UsageError
from amptune.lint.session import LintOptions, LintSession, Outcome

FORMATS = ("text", "json", "sarif", "github")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``lint``."""
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files or folders (default: .); - is standard input")
    rules = parser.add_argument_group("rules")
    for flag, text in (("--select", "rules to run, as AMP101 or AMP1,AMP3"), ("--ignore", "rules to leave out")):
        rules.add_argument(flag, action="append", default=[], metavar="CODES", help=text)
    rules.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings (default: pyproject.toml)")
    fixing = parser.add_argument_group("fixing")
    fixing.add_argument("--fix", action="store_true", help="make the safe fixes, in place")
    fixing.add_argument("--unsafe-fixes", action="store_true", help="make fixes that may change behaviour as well")
    fixing.add_argument("--diff", action="store_true", help="print the fixes as a diff, change nothing; exit 1 if any")
    fixing.add_argument("--exit-non-zero-on-fix", action="store_true", help="exit 1 when a file was changed")
    output = parser.add_argument_group("output")
    output.add_argument("--format", choices=FORMATS, default="text", help="form of the report (default: text)")
    output.add_argument("--statistics", action="store_true", help="how often each rule fired, in place of the findings")
    output.add_argument("--fail-on", choices=FAIL_ON, help="lowest severity that exits 1 (default: error)")
    output.add_argument("--exit-zero", action="store_true", help="exit 0 even with findings")
    old = parser.add_argument_group("old code")
    old.add_argument("--baseline", type=Path, metavar="FILE", help="leave out the findings that FILE holds")
    old.add_argument("--write-baseline", action="store_true", help="write the findings of this run to the baseline")
    running = parser.add_argument_group("running")
    running.add_argument("--stdin-filename", metavar="FILE", help="name that standard input is linted under")
    running.add_argument("--no-cache", action="store_true", help="neither use nor keep results of earlier runs")
    running.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Lint and report; the exit code is 0, 1 for findings, 2 for files that could not be linted."""
    show_any_name()
    _check_usage(args)
    config = load_config(args.config)
    session = LintSession(_options(args, config))
    outcome = session.run()
    if args.diff:
        sys.stdout.write(outcome.diff)
        _say_errors(outcome.errors)
        return 2 if outcome.errors else 1 if outcome.diff else 0
    if outcome.fixed_stdin is not None:
        sys.stdout.write(outcome.fixed_stdin)
        sys.stderr.write(_render(args, session, outcome))
    else:
        sys.stdout.write(_render(args, session, outcome))
    _say_fixed(outcome)
    return _exit_code(args, config, outcome)


def _check_usage(args: argparse.Namespace) -> None:
    if args.write_baseline and args.baseline is None:
        raise UsageError("--write-baseline needs --baseline FILE")
    if args.write_baseline:
        from amptune.core.files import check_file

        check_file(args.baseline)
    if args.jobs < 0:
        raise UsageError(f"--jobs {args.jobs} is negative", hint="use 0 for one process a core")
    if args.paths == ["-"] or not args.stdin_filename:
        return
    if args.paths:
        raise UsageError("--stdin-filename reads standard input: give no other paths")


def _options(args: argparse.Namespace, config: Config) -> LintOptions:
    from_stdin = bool(args.stdin_filename) or args.paths == ["-"]
    baseline = args.baseline or (config.root / config.baseline if config.baseline else None)
    return LintOptions(
        paths=tuple(args.paths or ["."]),
        config=config,
        select=codes(args.select) or config.select,
        ignore=(*config.ignore, *codes(args.ignore)),
        stdin=sys.stdin.buffer.read() if from_stdin else None,
        stdin_name=args.stdin_filename or "stdin.py",
        fix=args.fix or args.unsafe_fixes or args.diff,
        unsafe=args.unsafe_fixes,
        write=not args.diff,
        baseline=baseline,
        write_baseline=args.write_baseline,
        cache=not args.no_cache,
        jobs=args.jobs,
    )


def _render(args: argparse.Namespace, session: LintSession, outcome: Outcome) -> str:
    findings, errors = outcome.findings, outcome.errors
    match args.format:
        case "json":
            from amptune.report import json

            return json.render_statistics(findings, errors) if args.statistics else json.render(findings, errors)
        case "sarif":
            from amptune.report import sarif

            return sarif.render(findings, errors, rules=session.rules)
        case "github":
            from amptune.report import github

            return github.render(findings, errors)
    from amptune.report import text

    if args.statistics:
        return text.render_statistics(findings) + text.render((), errors)
    return text.render(findings, errors, lines=session.lines, color=takes_color(), files=outcome.files)


def _say_errors(errors: Sequence[FileError]) -> None:
    from amptune.report import text

    sys.stderr.write(text.render((), errors))


def _say_fixed(outcome: Outcome) -> None:
    if outcome.fixes_made:
        count, files = outcome.fixes_made, outcome.files_changed
        plural = "" if count == 1 else "es"
        print(f"amptune: {count} fix{plural} made in {files} file{'' if files == 1 else 's'}", file=sys.stderr)
    for note in outcome.notes:
        print(f"amptune: {note}", file=sys.stderr)


def _exit_code(args: argparse.Namespace, config: Config, outcome: Outcome) -> int:
    if outcome.errors:
        return 2
    if args.exit_zero:
        return 0
    if args.exit_non_zero_on_fix and outcome.fixes_made:
        return 1
    fail_on = args.fail_on or config.fail_on
    return 0 if fail_on == "never" else int(_worst(outcome.findings) >= Severity.parse(fail_on))


def _worst(findings: Sequence[Finding]) -> int:
    return max((int(finding.severity) for finding in findings), default=-1)
