"""How often ``amptune lint`` is right on real packages, by a reading of every error and warning.

Run: ``python -m tests.benchmarks.lint_accuracy SOURCES [--fetch] [--show] [--write]``. SOURCES is a folder with one
sub-folder for each package of ``lint_readings/packages.csv``; ``--fetch`` fills it with ``pip download --no-deps``
(nothing is installed). The verdicts stand in ``lint_readings/readings.csv``, one line a finding: package, path, line,
rule, verdict (true, false, undecidable), reason. ``--show`` prints findings that nobody has read, with their lines, and
``--write`` writes ``reports/lint_accuracy.md``. The run fails while a finding is unread.

``first_readings.csv`` counts what was found in code that no rule had met, before anything was mended for it, and
``first_causes.csv`` says what was wrong there and what became of it; both were written down by hand.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
READINGS = HERE / "lint_readings"
REPORT = HERE / "reports" / "lint_accuracy.md"
CONTEXT = 12
VERDICTS = ("true", "false", "undecidable")
_UNSEEN = (
    "Each piece of code was read first, and its AMP mistakes were written down; then it was linted, and every "
    "error and warning was read. `mistakes` and `found` are those of the reading, `findings` are lint's errors "
    "and warnings without the deprecated names (AMP401 to AMP403), which were all true. The second set was drawn "
    "after the first one had been mended for, and was linted before anything was mended for it: its count is the "
    "one to expect. One mistake of the reading was struck out: a scaler that is updated after each step of a "
    "critic is right.\n\n"
    "The training steps come from an index of public repositories: the first hits of searches for calls of a "
    "gradient scaler (`scaler.step(`, `self.grad_scaler.step(`, `scaler.scale(total_loss)`, ...). Of each file we "
    "had the part around the step; it was abridged to the statements that touch the scaler, autocast, optimizer "
    "and gradients, and a constructor that lay outside was completed as the part shows it to be. So these are "
    "mostly loops with a scaler: they say little of the other families of rules. The packages are released ones, "
    "linted whole; the files that were read are those that train with AMP. No package of the tables above is "
    "among them. The third set was written and marked by the rules' author before lint ran on it (Lightning, "
    "accelerate, Trainers, DDP, FSDP, DeepSpeed, GANs, resumed runs, notebooks; 12 of the 27 scripts are careful): "
    "three of the 12 that were found stand on another line of the same mistake than the mark, and one is information. "
    "It lies in `tests/lint/fixtures` now."
)
_KEPT = (".py", ".ipynb", ".json", ".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package to lint: name and version on PyPI, and whether it is "named" by the issue or "unseen"."""

    name: str
    version: str
    group: str


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a person says about one finding. ``done`` is what became of the rule, for a false one."""

    package: str
    path: str
    line: int
    rule: str
    verdict: str
    reason: str
    done: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells findings apart; the versions of the packages are fixed, so lines are."""
        return (self.package, self.path, self.line, self.rule)


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the table."""

    package: Package
    files: int
    lines: int
    severities: Counter[str]
    verdicts: Counter[tuple[str, str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Lint the packages and compare with the readings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", type=Path)
    parser.add_argument("--fetch", action="store_true", help="download what is not there")
    parser.add_argument("--show", action="store_true", help="print unread findings with their lines")
    parser.add_argument("--write", action="store_true", help="write the report")
    parser.add_argument("--only", help="names of packages, with commas")
    args = parser.parse_args(argv)
    packages = [Package(**row) for row in _rows("packages.csv")]
    packages = [item for item in packages if args.only is None or item.name in args.only.split(",")]
    readings = {reading.key: reading for reading in map(_reading, _rows("readings.csv"))}
    results, unread = [], 0
    for package in packages:
        home = args.sources / package.name
        if args.fetch and not home.is_dir():
            fetch(package, home)
        findings = lint(home)
        missing = [item for item in findings if _key(package, item) not in readings and item["severity"] != "info"]
        unread += len(missing)
        results.append(_result(package, home, findings, readings))
        print(package.name, dict(results[-1].severities), "unread:", len(missing), flush=True)
        if args.show:
            show(home, missing)
    if args.write:
        names = {package.name for package in packages}
        notes = [item for item in readings.values() if item.verdict != "true" and item.package in names]
        REPORT.write_text(report(results, notes), encoding="utf-8")
    return 1 if unread else 0


def _rows(name: str) -> list[dict[str, str]]:
    with (READINGS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _reading(row: dict[str, str]) -> Reading:
    if row["verdict"] not in VERDICTS:
        raise SystemExit(f"readings.csv: verdict {row['verdict']!r} of {row['path']}:{row['line']}")
    return Reading(**{**row, "line": int(row["line"])})  # type: ignore[arg-type]


def fetch(package: Package, home: Path) -> None:
    """Download the wheel or source archive and unpack the files that lint reads."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--dest", folder, wanted], check=True)
        archive = next(Path(folder).iterdir())
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(home, [name for name in wheel.namelist() if name.endswith(_KEPT)])
            return
        with tarfile.open(archive) as source:
            members = [item for item in source.getmembers() if item.isfile() and item.name.endswith(_KEPT)]
            source.extractall(home, members, filter="data")


def lint(home: Path) -> list[dict[str, Any]]:
    """Findings of all severities; paths are relative to the package's folder."""
    command = [sys.executable, "-m", "amptune", "lint", "--no-cache", "--exit-zero", "--format", "json"]
    done = subprocess.run([*command, "."], cwd=home, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 2):
        raise SystemExit(f"{home.name}: amptune lint ended with {done.returncode}: {done.stderr[-500:]}")
    findings: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    return findings


def _key(package: Package, finding: dict[str, Any]) -> tuple[str, str, int, str]:
    return (package.name, finding["path"], finding["line"], finding["rule"])


def _result(
    package: Package, home: Path, findings: list[dict[str, Any]], readings: dict[tuple[str, str, int, str], Reading]
) -> Result:
    files = sorted(home.rglob("*.py"))
    lines = sum(file.read_bytes().count(b"\n") for file in files)
    read = [(item["severity"], readings[key].verdict) for item in findings if (key := _key(package, item)) in readings]
    return Result(
        package, len(files), lines, Counter(item["severity"] for item in findings),
        Counter(pair for pair in read if pair[0] != "info"),
    )  # fmt: skip


def show(home: Path, findings: list[dict[str, Any]]) -> None:
    """Print findings with the lines around them."""
    for item in findings:
        line = item["line"]
        print(f"\n=== {item['path']}:{line} {item['rule']} {item['severity']}: {item['message']}")
        text = (home / item["path"]).read_text(encoding="utf-8", errors="replace").splitlines()
        for number in range(max(1, line - CONTEXT), min(len(text), line + CONTEXT) + 1):
            print(f"{'>' if number == line else ' '}{number:5} {text[number - 1]}")


def report(results: Sequence[Result], notes: Sequence[Reading]) -> str:
    """The Markdown table."""
    verdicts = ("true", "false", "?")
    head = ("package", "version", "files", "lines", "errors", *verdicts, "warnings", *verdicts, "infos")
    out = ["# How often lint is right", "", _about(results, notes), ""]
    for group, title in (
        ("named", "The packages that issue 6 names"),
        ("unseen", "Packages that no rule was built on"),
    ):
        rows = [item for item in results if item.package.group == group]
        out += [f"## {title}", "", _row(head), _row(["---"] * len(head)), *(_row(_cells(item)) for item in rows)]
        out += [_row(_total(rows)), ""]
    out += [*first_readings(), "## Findings that are not true, or cannot be told", ""]
    out += [_row(("package", "place", "rule", "verdict", "reason", "what was done")), _row(["---"] * 6)]
    out += [
        _row((item.package, f"{item.path}:{item.line}", item.rule, item.verdict, item.reason, item.done or "left"))
        for item in notes
    ]
    return "\n".join(out) + "\n"


def first_readings() -> list[str]:
    """The section on code that the rules had never met."""
    counts, causes = _rows("first_readings.csv"), _rows("first_causes.csv")
    out = ["## Unseen files, first reading", "", _UNSEEN, ""]
    for rows in (counts, causes):
        out += [_row(list(rows[0])), _row(["---"] * len(rows[0])), *(_row(list(row.values())) for row in rows), ""]
    return out


def _about(results: Sequence[Result], notes: Sequence[Reading]) -> str:
    total = sum((item.verdicts for item in results), Counter[tuple[str, str]]())
    lines = sum(item.lines for item in results)
    false = total[("error", "false")] + total[("warning", "false")]
    said = sum(total[("warning", verdict)] for verdict in VERDICTS)
    share = f"{100 * total[('warning', 'true')] / said:.0f} %" if said else "none"
    errors = sum(total[("error", verdict)] for verdict in VERDICTS)
    first = Counter(item.package for item in notes if item.verdict == "false")
    true, unclear, wrong = (total[("warning", verdict)] for verdict in ("true", "undecidable", "false"))
    return (
        f"Every error and warning was read by hand in the code. {len(results)} packages, {lines:,} lines: "
        f"{errors} errors ({total[('error', 'true')]} true), {said} warnings, of which {true} true ({share}), "
        f"{unclear} undecidable and {wrong} false.\n\n"
        f"The first reading had {sum(first.values())} false findings more, in {len(first)} packages; what each was and "
        "what was changed in its rule stands below. So this is no measure on code that the rules have never met: "
        f"there, expect the first reading. {false} false findings are left.\n\n"
        "'?' is undecidable: whether it is a defect depends on what the file does not show. Infos were not read. "
        "Made by `make bench-lint-accuracy`; the verdicts stand in `tests/benchmarks/lint_readings/readings.csv`."
    )


def _cells(item: Result) -> list[str]:
    numbers = [str(item.verdicts[(severity, verdict)]) for severity in ("error", "warning") for verdict in VERDICTS]
    counts = [str(item.severities[severity]) for severity in ("error", "warning")]
    named = [item.package.name, item.package.version, str(item.files), str(item.lines)]
    return [*named, counts[0], *numbers[:3], counts[1], *numbers[3:], str(item.severities["info"])]


def _total(rows: Sequence[Result]) -> list[str]:
    columns = [[int(cell) for cell in column] for column in list(zip(*map(_cells, rows), strict=True))[2:]]
    return ["**all**", "", *(str(sum(column)) for column in columns)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    raise SystemExit(main())
