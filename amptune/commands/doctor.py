"""``amptune doctor``: what this machine and torch can do, format by format, and which recipe to start from."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amptune.analyze.doctor import Report


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``doctor``."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="form of the report (default: text)")


def run(args: argparse.Namespace) -> int:
    """Try the formats and print; the exit code is 0."""
    print("amptune: trying each format with one product", file=sys.stderr)
    from amptune.analyze.doctor import examine

    report = examine()
    print(json.dumps(report.to_json(), indent=1) if args.format == "json" else text(report))
    return 0


def text(report: Report) -> str:
    """The report for people."""
    lines = [f"device    {report.name}", f"packages  {', '.join(f'{k} {v}' for k, v in report.packages.items())}", ""]
    for entry in report.formats:
        rate = f"{entry.rate:6.2f}x fp32" if entry.rate is not None else ""
        gaps = f"{entry.gaps} ops have no kernel" if entry.gaps else ""
        note = "; ".join(part for part in (entry.note, gaps) if part)
        lines.append(f"  {entry.number_format!s:10s} {entry.state:6s} {rate:13s} {note}".rstrip())
    lines += ["", f"start from {report.recipe}: {report.reason}"]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])
