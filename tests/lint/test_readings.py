"""The committed readings of findings in real packages fit together."""

from __future__ import annotations

import csv
from pathlib import Path

from amptune.testing import source_rules
from tests.benchmarks.lint_accuracy import first_readings

READINGS = Path(__file__).parents[1] / "benchmarks" / "lint_readings"


def rows(name: str) -> list[dict[str, str]]:
    with (READINGS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_reading_is_of_a_listed_package_and_a_rule_that_exists() -> None:
    packages = {row["name"] for row in rows("packages.csv")}
    codes = {rule.code for rule in source_rules(["amptune_rules"])}
    readings = rows("readings.csv")
    assert {row["package"] for row in readings} <= packages
    assert {row["rule"] for row in readings} <= codes
    assert all(row["reason"] for row in readings)


def test_what_was_done_is_said_of_every_false_finding() -> None:
    assert [row["path"] for row in rows("readings.csv") if row["verdict"] == "false" and not row["done"]] == []


def test_first_readings_add_up() -> None:
    codes = {rule.code for rule in source_rules(["amptune_rules"])}
    causes, counts = rows("first_causes.csv"), rows("first_readings.csv")
    assert {row["rule"] for row in causes} <= codes
    assert all(row["cause"] and row["done"] for row in causes)
    for name in {row["set"] for row in counts}:
        of_set = [row for row in counts if row["set"] == name]
        missed = sum(int(row["mistakes"]) - int(row["found"]) for row in of_set)
        false = sum(int(row["false"]) for row in of_set)
        told = dict.fromkeys(("missed", "false"), 0)
        for row in causes:
            told[row["verdict"]] += int(row["places"]) if row["set"] == name else 0
        assert told == {"missed": missed, "false": false}
        for row in of_set:
            assert int(row["findings"]) == sum(int(row[key]) for key in ("true", "false", "undecidable"))


def test_the_report_has_the_first_readings() -> None:
    report = (READINGS.parent / "reports" / "lint_accuracy.md").read_text(encoding="utf-8")
    assert "\n".join(first_readings()) in report
