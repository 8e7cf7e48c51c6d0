"""Our own code is clean under our own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.cli import run

ROOT = Path(__file__).parents[2]


def test_our_own_code_is_clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    planted = ROOT / "tests/benchmarks/first_reading"  # files with faults
    benchmarks = [str(path) for path in planted.parent.iterdir() if path != planted and path.suffix in ("", ".py")]
    code = run(["lint", "--no-cache", "--fail-on", "info", "amptune", "rules", "examples", *benchmarks])
    assert code == 0, capsys.readouterr().out
