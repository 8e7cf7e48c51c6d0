"""The terminal's table of value ranges."""

from __future__ import annotations

from typing import Any

from amptune.report.ranges import render_ranges

SHARES = {"fp16": 0.25, "bf16": 0.0, "fp8_e4m3": 1.0, "fp8_e5m2": 0.5}
FITS = dict.fromkeys(SHARES, "cannot overflow")


def section(*, observed: bool) -> dict[str, Any]:
    sites: dict[str, Any] = {
        "fc": {"bound": {"low": -3.0, "high": 3.0}, "verdict": FITS},
        "#exp.0": {"bound": {"low": 0.0, "high": None}, "verdict": dict.fromkeys(SHARES, "may overflow")},
        "blocks." + "x" * 60: {"bound": {"low": 0.0, "high": 7e4}, "verdict": FITS | {"fp16": "overflows"}},
    }
    if observed:
        sites["fc"]["observed"] = {"low": -1.0, "high": 2.0, "underflow": SHARES}
        sites["fc"]["gradient"] = {"low": -1e-9, "high": 1e-9, "underflow": SHARES | {"fp16": 1.0}}
    return {"sites": sites, "observed": {"device": "cpu", "loss": 1.0} if observed else None}


def test_the_largest_bounds_first_and_what_has_none_counted() -> None:
    lines = render_ranges(section(observed=False), "x in [0, 1] (batch)").splitlines()
    assert lines[0] == "value ranges with x in [0, 1] (batch)"
    assert lines[1].split() == ["site", "bound", "fp16", "bf16", "fp8_e4m3"]
    assert lines[2].startswith("  ...xxx")
    assert lines[2].split()[1:] == ["[0,", "7e+04]", "OVERFLOWS", "fits", "fits"]
    assert lines[3].split() == ["fc", "[-3,", "3]", "fits", "fits", "fits"]
    assert lines[4] == "  no bound for 1 of 3 results"


def test_a_recorded_step_adds_what_it_showed() -> None:
    text = render_ranges(section(observed=True), "x")
    row = next(line for line in text.splitlines() if line.startswith("  fc"))
    assert row.split() == ["fc", "[-3,", "3]", "[-1,", "2]", "25.0%", "100.0%", "fits", "fits", "fits"]


def test_nothing_to_show() -> None:
    assert not render_ranges({"sites": {}, "observed": None}, "x")
