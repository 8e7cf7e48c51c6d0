"""``amptune apply``: a plan that exists, as a patched model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan

from .test_cli_tune import amptune
from .tune.conftest import MLP

PLAN = Plan(sites={"fc1": SitePlan(Format.BF16), "fc2": SitePlan(Format.BF16, pad=64)})


def write_plan(folder: Path, plan: Plan = PLAN, **changes: Any) -> None:
    (folder / "plan.json").write_text(json.dumps({**plan.to_json("amptune 0"), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MLP)
    write_plan(tmp_path)
    return tmp_path


def test_the_patched_model_is_written(folder: Path) -> None:
    result = amptune(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == {
        "amptune-out/net/net_amptuned.py", "amptune-out/net/amptune_runtime.py", "amptune-out/net/net.patch",
    }  # fmt: skip
    assert '"fc1": "bf16"' in (folder / "amptune-out/net/net_amptuned.py").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 9}, ("schema version 9",)),
        ({"sites": {"layer9": SitePlan(Format.BF16)}}, ("another model", "layer9")),
        ({"model": {"target": "", "source_sha256": "", "fingerprint": "0123"}}, ("shapes differ",)),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    sites = changes.get("sites")
    write_plan(folder, Plan(sites=sites) if sites else PLAN, **({} if sites else changes))
    result = amptune(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 2
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "amptune-out").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_something_else_than_a_plan(folder: Path, content: str) -> None:
    (folder / "plan.json").write_text(content)
    result = amptune(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 2
    assert "plan.json" in result.stderr


def test_a_missing_plan(folder: Path) -> None:
    result = amptune(folder, "apply", "nowhere.json", "net.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert "nowhere.json" in result.stderr
