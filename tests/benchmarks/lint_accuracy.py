"""The machine part of the accuracy table: what ``amptune lint`` finds in given packages.

Run: ``python -m tests.benchmarks.lint_accuracy NAME=VERSION=FOLDER ... [--output F.json] [--show]``. ``--show`` prints
every error and warning with the lines around it, for the reading that decides whether it is true.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.lint_speed import count

CONTEXT = 12
SEVERITIES = ("error", "warning", "info")


def main(argv: Sequence[str] | None = None) -> int:
    """Lint the packages and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="+", help="NAME=VERSION=FOLDER")
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    parser.add_argument("--show", action="store_true", help="print each error and warning with its lines")
    args = parser.parse_args(argv)
    rows = []
    for text in args.packages:
        name, version, folder = text.split("=", 2)
        findings = lint(Path(folder))
        rows.append(row(name, version, Path(folder), findings))
        print(json.dumps(rows[-1]), flush=True)
        if args.show:
            show(Path(folder).parent, findings)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def lint(folder: Path) -> list[dict[str, Any]]:
    """Findings of all severities in a folder; paths are relative to the folder's parent."""
    command = [sys.executable, "-m", "amptune", "lint", "--no-cache", "--exit-zero", "--format", "json", folder.name]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 2):
        raise SystemExit(f"{folder.name}: amptune lint ended with {done.returncode}: {done.stderr[-500:]}")
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return findings


def row(name: str, version: str, folder: Path, findings: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the table."""
    lines, files = count(folder)
    severities = Counter(item["severity"] for item in findings)
    serious = [item for item in findings if item["severity"] != "info"]
    return {
        "package": name,
        "version": version,
        "files": files,
        "lines": lines,
        **{severity: severities[severity] for severity in SEVERITIES},
        "errors and warnings by rule": dict(sorted(Counter(item["rule"] for item in serious).items())),
    }


def show(root: Path, findings: list[dict[str, Any]]) -> None:
    """Print errors and warnings with the lines around them."""
    for item in findings:
        if item["severity"] == "info":
            continue
        line = item["line"]
        print(f"\n=== {item['path']}:{line} {item['rule']} {item['severity']}: {item['message']}")
        text = (root / item["path"]).read_text(encoding="utf-8", errors="replace").splitlines()
        for number in range(max(1, line - CONTEXT), min(len(text), line + CONTEXT) + 1):
            print(f"{'>' if number == line else ' '}{number:5} {text[number - 1]}")


if __name__ == "__main__":
    raise SystemExit(main())
