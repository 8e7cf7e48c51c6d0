"""``amptune verify``: a plan or a patched file against the original, trained side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan

from .inprocess import amptune
from .test_cli_apply import write_plan
from .tune.conftest import MLP

BF16 = Plan(sites={name: SitePlan(Format.BF16) for name in ("embed", "norm", "fc1", "fc2")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MLP)
    return tmp_path


def test_a_good_plan_is_as_good(folder: Path) -> None:
    write_plan(folder, BF16)
    result = amptune(folder, "verify", "net.py", "--plan", "plan.json", "--steps", "40", "--format", "json")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["verdict"] in ("as good", "within the noise")
    assert (data["steps"], data["stopped"]) == (40, "steps")
    assert data["losses"]["patched"] != data["losses"]["original"]
    assert data["losses"]["patched"][0] == pytest.approx(data["losses"]["original"][0], rel=0.01)
    page = (folder / "amptune-out/net/verify.html").read_text()
    assert 'class="patched"' in page
    assert json.loads((folder / "amptune-out/net/verify.json").read_text()) == data
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "amptune-out", "net.py", "plan.json",
    ]  # fmt: skip


def test_a_layer_that_does_not_train_is_worse_and_ends_the_run(folder: Path) -> None:
    frozen = MLP.replace("return self.fc2(weights", "return self.fc2.weight.detach().sum() + self.fc2(0 * weights")
    (folder / "patched.py").write_text(frozen)
    result = amptune(folder, "verify", "net.py", "patched.py", "--steps", "300")
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("worse: patched.py against net.py")
    assert "twice in a row" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("net.py",), "needs a patched file or --plan"),
        (("net.py", "nowhere.py"), "nowhere.py does not exist"),
        (("net.py", "--plan", "nowhere.json"), "nowhere.json"),
    ],
)
def test_what_is_missing_is_named(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    result = amptune(folder, "verify", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_another_model_is_refused(folder: Path) -> None:
    (folder / "other.py").write_text(MLP.replace("nn.Linear(16, 32)", "nn.Linear(16, 24)").replace("32, 13", "24, 13"))
    result = amptune(folder, "verify", "net.py", "other.py")
    assert result.returncode == 3
    assert "not one model" in result.stderr
