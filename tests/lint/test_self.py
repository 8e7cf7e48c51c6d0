"""Our own code is clean under our own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.cli import run

ROOT = Path(__file__).parents[2]


def test_our_own_code_is_clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    planted = (
        "first_reading",
        "second_reading",
        "third_reading",
        "fourth_reading",
        "fifth_reading",
        "sixth_reading",
        "seventh_reading",
        "eighth_reading",
        "ninth_reading",
    )  # files with faults
    inside = [path for path in (ROOT / "tests/benchmarks").iterdir() if path.name not in planted]
    benchmarks = [str(path) for path in inside if path.suffix in ("", ".py")]
    code = run(["lint", "--no-cache", "--fail-on", "info", "amptune", "rules", "examples", *benchmarks])
    assert code == 0, capsys.readouterr().out
