"""Training files of kinds that no other test has, with planted lines: what analyze says of each, beside what it should.

    python -m tests.benchmarks.first_reading [NAME ...] [--write]

Each file of first_reading/, and of the later second_reading/ to ninth_reading/, is read by the command as its author
would run it.
A line with ``# planted: G204`` is named when one of its rules reports it. expected.json beside the files keeps what the
first reading gave, before anything was changed for it, which findings a reader judged false or misleading, and what is
reported now: any difference to that is printed, and exit code 1. ``--write`` takes what is reported now as expected and
writes the reports.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amptune.cli import run

ROUNDS = (
    "first_reading",
    "second_reading",
    "third_reading",
    "fourth_reading",
    "fifth_reading",
    "sixth_reading",
    "seventh_reading",
    "eighth_reading",
    "ninth_reading",
)
HERE = Path(__file__).parent
GPUS = ("v100", "a100", "h100", "b200")
_PLANTED = re.compile(r"# planted: (?P<rules>G\d{3}(?:\|G\d{3})*)")
_BY_TIME = frozenset({"G109", "G110", "G302", "G303", "G408"})
"""Rules that ask what a step takes: the estimates may move without anything being wrong here."""
_OF_HARDWARE = frozenset({"G405", "G406", "G407"})


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the command says of a file.

    Attributes:
        planted: line -> rules of which one should report it.
        findings: the report's findings, without those about the GPUs alone where no planted line is of their rule.
    """

    planted: dict[int, frozenset[str]]
    findings: tuple[dict[str, Any], ...]

    @property
    def named(self) -> list[int]:
        """The planted lines that are reported."""
        seen = {
            (line, each["rule"]) for each in self.findings for line in each["evidence"].get("lines", [each["line"]])
        }
        seen |= {(also["line"], also["rule"]) for each in self.findings for also in each["evidence"].get("also", [])}
        return [line for line, rules in self.planted.items() if any((line, rule) in seen for rule in rules)]

    def keys(self, file: str) -> list[str]:
        """What has to stay as it is: rule, severity and line; the rule alone in files of packages."""
        kept = [each for each in self.findings if each["rule"] not in _BY_TIME]
        own = {f"{each['rule']} {_severity(each)}line {each['line']}" for each in kept if each["path"].endswith(file)}
        return sorted(own | {f"{each['rule']} elsewhere" for each in kept if not each["path"].endswith(file)})

    def wrong(self, judged: dict[str, str], kind: str) -> list[str]:
        """Findings that a reader judged to be of a kind, among those that are reported."""
        seen = {f"{each['rule']} {each['site']}" for each in self.findings}
        return [key for key, verdict in judged.items() if verdict == kind and key in seen]


def _severity(finding: dict[str, Any]) -> str:
    """Not of alignment, where it depends on what a step takes."""
    return "" if finding["rule"].startswith("G1") else f"{finding['severity']} "


def files(name: str) -> list[Path]:
    """The files of a round."""
    return sorted((HERE / name).glob("*.py"))


def expected_of(name: str) -> dict[str, Any]:
    """What expected.json of a round holds, by file."""
    found: dict[str, Any] = json.loads((HERE / name / "expected.json").read_text(encoding="utf-8"))
    return found


def read(file: Path) -> Reading:
    """Analyze a file by the command, in this process: it works in one of its own where torch is not loaded yet.

    Raises:
        RuntimeError: the command could not do its work.
    """
    torch.manual_seed(0)
    arguments = ["analyze", file.name, "--format", "json", *(word for gpu in GPUS for word in ("--gpu", gpu))]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(file.parent), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    if code not in (0, 1):
        raise RuntimeError(f"{file.name}: exit code {code}\n{err.getvalue()}")
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
    planted = {line: frozenset(found["rules"].split("|")) for line, text in lines if (found := _PLANTED.search(text))}
    aside = _OF_HARDWARE.difference(*planted.values())
    findings = (each for each in json.loads(out.getvalue())["findings"] if each["rule"] not in aside)
    return Reading(planted, tuple(findings))


def differences(file: Path, reading: Reading) -> list[str]:
    """What is not as expected.json has it, one line each."""
    name = file.stem
    expected = set(expected_of(file.parent.name)[name]["now"])
    found = set(reading.keys(file.name))
    gone, new = sorted(expected - found), sorted(found - expected)
    return [f"{name}: {each} is gone" for each in gone] + [f"{name}: {each} is new" for each in new]


def _row(name: str, entry: dict[str, Any], reading: Reading) -> tuple[str, list[int]]:
    first, judged = entry["first"], entry["judged"]
    now = [len(reading.named), len(reading.findings)]
    now += [len(reading.wrong(judged, kind)) for kind in ("false", "misleading")]
    before = [first["named"], first["findings"], first["false"], first["misleading"]]
    cells = [f"{old} / {new}" for old, new in zip(before, now, strict=True)]
    planted = len(reading.planted)
    if not planted:
        cells[0] = ""
    row = f"| {name} | {entry['kind']} | {planted or 'careful'} | {' | '.join(cells)} |"
    return row, [planted, *(n for pair in zip(before, now, strict=True) for n in pair)]


def report(readings: dict[str, Reading], expected: dict[str, Any]) -> str:
    """The table: a line a file, each number at first reading and now."""
    rows = [_row(name, expected[name], reading) for name, reading in readings.items()]
    total = [sum(each) for each in zip(*(numbers for _, numbers in rows), strict=True)]
    pairs = " | ".join(f"{total[at]} / {total[at + 1]}" for at in (1, 3, 5, 7))
    head = [
        "| file | kind | planted | named, first / now | findings | false | misleading |",
        "|---|---|---|---|---|---|---|",
    ]
    last = f"| **all** | {len(rows)} files | {total[0]} | {pairs} |"
    return "\n".join([*head, *(row for row, _ in rows), last])


def blocks(readings: dict[str, Reading], expected: dict[str, Any]) -> str:
    """A line for each block of a round that was read in several, each before a change was made for it; or nothing."""
    sums: dict[int, list[int]] = {}
    for name, reading in readings.items():
        if block := expected[name].get("block"):
            _, numbers = _row(name, expected[name], reading)
            before = sums.setdefault(block, [0] * (len(numbers) + 1))
            sums[block] = [old + new for old, new in zip(before, [1, *numbers], strict=True)]
    rows = [
        f"| {block} | {total[0]} | {total[1]} | {' | '.join(f'{total[at]} / {total[at + 1]}' for at in (2, 4, 6, 8))} |"
        for block, total in sorted(sums.items())
    ]
    head = [
        "| block | files | planted | named, first / now | findings | false | misleading |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows]) if rows else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the files and compare; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    changed = [line for each in ROUNDS for line in _compare(each, options.names, write=options.write)]
    return 0 if options.write or not changed else 1


def _compare(name: str, wanted: Sequence[str], *, write: bool) -> list[str]:
    """Read the files of one round, print the table, and say what has changed."""
    expected = expected_of(name)
    readings: dict[str, Reading] = {}
    changed = []
    for file in files(name):
        if wanted and file.stem not in wanted:
            continue
        readings[file.stem] = read(file)
        changed += (lines := differences(file, readings[file.stem]))
        print("\n".join(lines) or f"{file.stem}: as expected", file=sys.stderr)
        if write:
            expected[file.stem]["now"] = readings[file.stem].keys(file.name)
    if not readings:
        return []
    table = report(readings, expected)
    parts = blocks(readings, expected)
    print(f"{table}\n\n{parts}" if parts else table)
    if write:
        (HERE / name / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")
        if not wanted:
            page = HERE / "reports" / f"{name}.md"
            text = page.read_text(encoding="utf-8")
            text = re.sub(r"(?ms)^\| file \|.*?^\| \*\*all\*\*[^\n]*", lambda _: table, text)
            page.write_text(re.sub(r"(?m)^\| block \|.*\n(\|.*\n?)+", lambda _: parts + "\n", text), encoding="utf-8")
    return changed


if __name__ == "__main__":
    raise SystemExit(main())
