"""The committed readings of findings in real packages fit together."""

from __future__ import annotations

import csv
from pathlib import Path

from amptune.testing import source_rules

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
