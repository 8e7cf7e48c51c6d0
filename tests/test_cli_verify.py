"""``amptune verify``: a plan or a patched file against the original, trained side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan

from .inprocess import amptune
from .test_cli_apply import write_plan
from .tune.conftest import MLP

OWN_LOSS = '''
import torch
from torch import nn

class Net(nn.Module):
    """Computes its own loss; an error of BF16 near 100 is larger than what is left to learn."""
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 1)
        nn.init.constant_(self.fc.weight, 0.9)
        nn.init.constant_(self.fc.bias, 100.0)

    def forward(self, x, target):
        output = self.fc(x).squeeze(-1)
        return {"loss": ((output - target) ** 2).mean()}

def make_model():
    return Net()

def make_batch():
    return next(train_batches())

def make_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.01)

def train_batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn(256, 8, generator=generator)
        yield {"x": x, "target": 100 + x.sum(-1) + 0.3 * torch.randn(256, generator=generator)}

def loss_fn(output, batch):
    return output["loss"]
'''
LEARNT_BY_HEART = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 128), nn.Linear(128, 1)

    def forward(self, x):
        output = self.fc2(torch.tanh(self.fc1(x)))
        return output

def make_batch():
    x = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    return x, 10 + 10 * torch.sin(x[:, :3].sum(-1, keepdim=True))

def make_optimizer(parameters):
    return torch.optim.Adam(parameters, lr=1e-2)

def loss_fn(output, batch):
    return ((output - batch[1]) ** 2).mean()
"""
IN_BF16 = LEARNT_BY_HEART.replace(
    "        output = ", "        with torch.autocast('cpu', torch.bfloat16):\n            output = "
).replace("(output - batch", "(output.float() - batch")
IN_QUARTERS = LEARNT_BY_HEART.replace("return output", "return output + ((4 * output).round() / 4 - output).detach()")
ROUNDED = OWN_LOSS.replace("self.fc(x)", "self.fc(x).bfloat16().float()")
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
    frozen = MLP.replace("self.norm(self.embed(ids))", "self.norm(self.embed(ids)).detach()")
    (folder / "patched.py").write_text(frozen)
    result = amptune(folder, "verify", "net.py", "patched.py", "--steps", "300")
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("worse: patched.py against net.py")
    assert "twice in a row" in result.stdout


def test_a_loss_that_the_model_rounds_itself_is_not_held_against_its_weights(folder: Path) -> None:
    (folder / "net.py").write_text(OWN_LOSS)
    (folder / "patched.py").write_text(ROUNDED)
    result = amptune(folder, "verify", "net.py", "patched.py", "--steps", "200", "--format", "json")
    data = json.loads(result.stdout)
    assert (data["verdict"], data["steps"], result.returncode) == ("as good", 200, 0)
    assert data["own_gap"]["low"] > data["own_gap"]["noise"]
    assert data["judged_by"] == "loss of the weights in the original's FP32 forward"
    assert data["losses"]["patched_in_fp32"][0] == data["losses"]["original"][0]
    text = amptune(folder, "verify", "net.py", "patched.py", "--steps", "200").stdout
    assert "original's FP32 forward" in text
    assert "the loss that the patched model computes itself reads +" in text


def test_weights_that_a_rounded_loss_trains_worse_are_worse(folder: Path) -> None:
    """Rounding whose gradients are wrong: the output's part that is left out does not train."""
    (folder / "net.py").write_text(OWN_LOSS)
    (folder / "patched.py").write_text(ROUNDED.replace("bfloat16().float()", "bfloat16().detach() + 0 * self.fc(x)"))
    result = amptune(folder, "verify", "net.py", "patched.py", "--steps", "200")
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("worse: patched.py against net.py")
    assert "computes itself" not in result.stdout


@pytest.mark.parametrize(("patched", "verdict"), [(IN_BF16, "as good"), (IN_QUARTERS, "worse")], ids=["BF16", "worse"])
def test_a_batch_learnt_by_heart_leaves_what_rounding_makes_of_it(folder: Path, patched: str, verdict: str) -> None:
    """From a loss of 150, half a percent of the progress would be thousands of times what FP32 ends at."""
    (folder / "net.py").write_text(LEARNT_BY_HEART)
    (folder / "patched.py").write_text(patched)
    result = amptune(folder, "verify", "net.py", "patched.py", "--steps", "400", "--format", "json")
    data = json.loads(result.stdout)
    assert data["verdict"] == verdict
    late = slice(data["steps"] // 2, None)
    level, theirs = (sum(data["losses"][name][late]) for name in ("original", "patched_in_fp32"))
    assert 3 * level < theirs, "rounding alone raises it"
    assert data["gap"]["mean"] < data["tolerance"] * data["losses"]["original"][0]


@pytest.mark.parametrize("check", ["torch.linalg.cholesky(c)", "(c.det() * 1e9).sqrt()"], ids=["raises", "NaN"])
def test_a_model_that_rounding_breaks_is_verified_all_the_same(folder: Path, check: str) -> None:
    source = LEARNT_BY_HEART.replace("return output", f"c = self.c\n        return output + 0 * {check}.sum()").replace(
        "        self.fc1",
        "        self.c = nn.Parameter(64 * torch.ones(8, 8) + 2e-2 * torch.eye(8))\n        self.fc1",
    )
    (folder / "net.py").write_text(source.replace("lr=1e-2", "lr=1e-5"))
    result = amptune(folder, "verify", "net.py", "net.py", "--steps", "25", "--format", "json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["losses"]["rounded"] == []


def test_whatever_a_step_raises_is_one_message(folder: Path) -> None:
    (folder / "net.py").write_text(
        MLP.replace("        x = self.norm(", "        assert ids.device == 0, 'no'\n        x = self.norm(")
    )
    result = amptune(folder, "verify", "net.py", "net.py", "--steps", "25")
    assert result.returncode == 3
    assert "net.py: a training step failed: AssertionError: no (" in result.stderr
    assert "net.py:16)" in result.stderr


def test_folders_of_runs_that_were_killed_are_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Not those of a process that lives, nor of the last day, nor what has only such a name."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"{ended.pid}-old", f"{ended.pid}-new", f"{os.getpid()}-old", "x-old", "1-file"):
        path = temporary / f"amptune-verify-{name}"
        path.touch() if name == "1-file" else path.mkdir()
        if not name.endswith("new"):
            os.utime(path, (0, 0))
    write_plan(folder, BF16)
    assert amptune(folder, "verify", "net.py", "--plan", "plan.json", "--steps", "20").returncode == 0
    left = {path.name.removeprefix("amptune-verify-") for path in temporary.glob("amptune-*")}
    assert left == {f"{ended.pid}-new", f"{os.getpid()}-old", "x-old", "1-file"}


def test_a_module_of_a_package_runs_as_it_will_beside_the_users_file(tmp_path: Path) -> None:
    """It imports relatively and reads a file beside itself, and its patched file still lies in the output folder."""
    package = tmp_path / "amptune_test_shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.txt").write_text("13")
    (package / "parts.py").write_text("import torch\nHeads = torch.nn.Linear\n")
    out = "int((pathlib.Path(__file__).parent / 'sizes.txt').read_text())"
    head = f"import pathlib\nfrom .parts import Heads\nOUT = {out}\n"
    (package / "net.py").write_text(head + MLP.replace("nn.Linear(32, 13)", "Heads(32, OUT)"))
    write_plan(tmp_path, BF16)
    by_plan = amptune(tmp_path, "verify", "amptune_test_shop/net.py", "--plan", "plan.json", "--steps", "25")
    assert by_plan.returncode == 0, by_plan.stderr
    assert amptune(tmp_path, "apply", "plan.json", "amptune_test_shop/net.py").returncode == 0
    patched = "amptune-out/net/net_amptuned.py"
    by_file = amptune(tmp_path, "verify", "amptune_test_shop/net.py", patched, "--steps", "25")
    assert by_file.returncode == 0, by_file.stderr
    assert sorted(path.name for path in package.glob("*.*")) == ["__init__.py", "net.py", "parts.py", "sizes.txt"]


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
    assert "the two files are not one model: fc1.weight is 32x16 in one, 24x16 in the other" in result.stderr
    (folder / "other.py").write_text(MLP.replace("self.fc2", "self.head"))
    result = amptune(folder, "verify", "net.py", "other.py")
    assert result.returncode == 3
    assert "the two files are not one model: only one of them has fc2.weight" in result.stderr


BACKWARD = """
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ (2 * torch.eye(gradient.shape[-1]))


class Net(nn.Module):"""


def test_a_step_that_fails_with_a_plan_names_the_line(folder: Path) -> None:
    source = MLP.replace("\nclass Net(nn.Module):", BACKWARD).replace("self.norm(self.embed", "Double.apply(self.embed")
    (folder / "net.py").write_text(source)
    write_plan(folder, Plan(sites={name: SitePlan(Format.BF16) for name in ("embed", "fc1", "fc2")}))
    result = amptune(folder, "verify", "net.py", "--plan", "plan.json", "--steps", "3")
    assert result.returncode == 3
    message, hint = result.stderr.splitlines()[-2:]
    assert "net.py under plan.json: a training step failed: " in message
    assert "BF16" in message
    assert "(net_amptuned.py:" in message
    assert "amptune-verify" not in message
    assert "amptune apply plan.json net.py writes net_amptuned.py" in hint
