"""``amptune apply``: a plan that exists, as a patched model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from amptune.apply import apply
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan

from .inprocess import amptune as amptune_here
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


def test_without_a_model_it_is_the_plans(folder: Path) -> None:
    (folder / "model.py").write_text("raise RuntimeError('the wrong file')")
    write_plan(folder, dataclasses.replace(PLAN, target="net.py"))
    result = amptune_here(folder, "apply", "plan.json")
    assert result.returncode == 0, result.stderr
    assert (folder / "amptune-out/net/net_amptuned.py").is_file()


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
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 2
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "amptune-out").exists()


@pytest.mark.parametrize(
    ("parts", "backend", "said"),
    [
        ("fc1", 'in"ductor', "Invalid backend: 'in\"ductor'"),
        ("fc9", "inductor", "the part to compile 'fc9' is not in the model; did you mean"),
    ],
)
def test_parts_that_cannot_be_compiled_are_refused(folder: Path, parts: str, backend: str, said: str) -> None:
    write_plan(folder, compile={"parts": [parts], "backend": backend})
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 3
    assert f"the plan does not fit this model: {said}" in result.stderr
    assert not (folder / "amptune-out").exists()


def test_a_plan_without_sites_is_not_said_to_have_names_in_common(folder: Path) -> None:
    """As of a search that nothing beat FP32 in: there is no name to compare."""
    changes = {"target": "net.py", "source_sha256": "", "fingerprint": "0123"}
    write_plan(folder, Plan(), model=changes)
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 2
    assert "plan.json is for another model: operations or shapes differ" in result.stderr
    write_plan(folder, Plan(), model=changes | {"source_sha256": "0" * 64, "fingerprint": ""})
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 0
    assert "changed since plan.json was made" in result.stderr
    assert "sites of the plan" not in result.stderr


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_something_else_than_a_plan(folder: Path, content: str) -> None:
    (folder / "plan.json").write_text(content)
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 2
    assert "plan.json" in result.stderr


def test_a_missing_plan(folder: Path) -> None:
    result = amptune_here(folder, "apply", "nowhere.json", "net.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert "nowhere.json" in result.stderr


def renamed(folder: Path) -> None:
    text = (folder / "net.py").read_text()
    (folder / "net.py").write_text(text.replace("self.fc1", "self.fc_in1").replace("F.softmax", "torch.softmax"))


def test_a_model_file_that_changed_names_the_sites_that_moved(folder: Path) -> None:
    write_plan(folder, model={"target": "net.py", "source_sha256": "0" * 64, "fingerprint": ""})
    renamed(folder)
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert (result.returncode, result.stdout) == (2, "")
    words = "the model's file changed since it was made, and 1 of its 2 sites are not in this one: fc1 (now fc_in1?)"
    assert words in result.stderr
    assert not (folder / "amptune-out").exists()


def test_a_model_file_that_changed_elsewhere_is_said(folder: Path) -> None:
    write_plan(folder, model={"target": "net.py", "source_sha256": "0" * 64, "fingerprint": ""})
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 0
    assert "changed since plan.json was made; all 2 sites of the plan are in it" in result.stderr


@pytest.mark.parametrize("head", ["", "\ufeff"])
def test_line_endings_and_a_byte_order_mark_are_no_change(folder: Path, head: str) -> None:
    (folder / "net.py").write_bytes((head + MLP.replace("\n", "\r\n")).encode())
    target = load_target(TargetSpec(str(folder / "net.py")))
    write_plan(folder, dataclasses.replace(PLAN, target="net.py", source_sha256=target.source_sha256))
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 0
    assert "changed since" not in result.stderr


def test_a_plan_measured_elsewhere_is_said(folder: Path) -> None:
    write_plan(folder, measured_on={"gpu": "NVIDIA Q100", "torch": "1.2.3", "inputs": ["64x8:int64", "64x8:int64"]},
               model={"target": "net.py", "source_sha256": "", "fingerprint": "0123"})  # fmt: skip
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 0, result.stderr
    assert "measured on NVIDIA Q100 and torch 1.2.3, this is" in result.stderr
    assert "measured with inputs 64x8:int64, 64x8:int64, here they are 16x8:int64, 16x8:int64" in result.stderr


def test_an_unknown_format_gives_the_nearest(folder: Path) -> None:
    data = PLAN.to_json("amptune 0")
    data["sites"]["fc1"]["format"] = "bf61"
    (folder / "plan.json").write_text(json.dumps(data))
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert "plan.json: sites['fc1']: field 'format': unknown number format 'bf61'" in result.stderr
    assert "did you mean bf16?" in result.stderr


@pytest.mark.parametrize("command", [("apply", "plan.json", "net.py"), ("tune", "net.py", "--budget", "1")])
def test_a_folder_that_cannot_be_written(folder: Path, command: tuple[str, ...]) -> None:
    """A file where a folder should be made, and a file system that takes none: also for root."""
    (folder / "taken").write_text("")
    before = sorted(path.name for path in folder.iterdir())
    for out in ("taken/out", "/proc/amptune-out"):
        result = amptune_here(folder, *command, "--out", out)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        assert out in result.stderr
        assert "Traceback" not in result.stderr
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


MIXED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x):
        h = self.fc(x)
        {line}


def make_batch():
    return torch.ones(4, 8), torch.zeros(4, dtype=torch.long)


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
"""


@pytest.mark.parametrize(
    "line",
    [
        "return (h * self.gain) @ h.t() @ x",
        "return torch.zeros_like(h).index_add(0, torch.arange(4), h * self.gain)",
    ],
)
def test_a_plan_whose_formats_meet_in_one_op_is_refused(folder: Path, line: str) -> None:
    (folder / "net.py").write_text(MIXED.format(line=line))
    write_plan(folder, Plan(sites={"fc": SitePlan(Format.BF16)}))
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert (result.returncode, result.stdout) == (3, "")
    assert "with this plan the model does not run: net.py:14: " in result.stderr
    assert "the model (net.Net) with input 4x8 float32 failed: RuntimeError" in result.stderr
    assert not (folder / "amptune-out").exists()
    write_plan(folder, Plan(sites={"fc": SitePlan(Format.FP32)}))
    assert amptune_here(folder, "apply", "plan.json", "net.py").returncode == 0


def test_a_pin_that_makes_the_formats_agree_is_tried_too(folder: Path) -> None:
    line = "return torch.matmul((h * self.gain).to(h.dtype), h.t()) @ h"
    (folder / "net.py").write_text(MIXED.format(line=line))
    sites = {"fc": SitePlan(Format.BF16), "#matmul.1": SitePlan(Format.FP32, how="source")}
    write_plan(folder, Plan(sites=sites))
    assert amptune_here(folder, "apply", "plan.json", "net.py").returncode == 0


def test_a_plan_applied_to_the_patched_file_changes_nothing(folder: Path) -> None:
    fingerprint = capture(load_target(TargetSpec(str(folder / "net.py")))).graph.fingerprint()
    write_plan(folder, model={"target": "net.py", "source_sha256": "", "fingerprint": fingerprint})
    assert amptune_here(folder, "apply", "plan.json", "net.py", "--out", "first").returncode == 0
    patched = folder / "first/net_amptuned.py"
    (folder / "first/net.py").write_bytes(patched.read_bytes())
    again = amptune_here(folder, "apply", "plan.json", "first/net.py", "--out", "second")
    assert again.returncode == 0, again.stderr
    assert (folder / "second/net_amptuned.py").read_bytes() == patched.read_bytes()
    assert (folder / "second/net.patch").read_text() == ""


PACKAGE = """
import torch
from torch import nn


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 16)

    def forward(self, x):
        return x * torch.softmax(self.up(x), -1)
"""
USES_PACKAGE = """
import torch
from torch import nn
from gates import Gated


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.gate = Gated()

    def forward(self, x):
        return self.gate(self.first(x))


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 16), torch.randn(4, 16)


def loss_fn(output, batch):
    return (output.float() - batch[1]).square().mean()
"""
BF16, PIN = SitePlan(Format.BF16), SitePlan(Format.FP32, how="source")


def test_a_pin_in_another_file_says_where_it_stands_and_what_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gates.py").write_text(PACKAGE)
    (tmp_path / "net.py").write_text(USES_PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sites = {"first": BF16, "gate.up": BF16, "gate#softmax.0": PIN}
    write_plan(tmp_path, Plan(sites=sites))
    result = amptune_here(tmp_path, "apply", "plan.json", "net.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert "pins 'gate#softmax.0', whose line stands in gates.py and not in net.py" in result.stderr
    assert '"gate#softmax.0": {"format": "fp32", "how": "autocast"}, and fp32 for gate.up' in result.stderr
    assert "put a copy of Gated into net.py" in result.stderr
    told = {"gate.up": SitePlan(Format.FP32), "gate#softmax.0": SitePlan(Format.FP32, how="autocast")}
    write_plan(tmp_path, Plan(sites=sites | told))
    assert amptune_here(tmp_path, "apply", "plan.json", "net.py").returncode == 0
    dtypes = """
import sys, torch
sys.path[:0] = [".", "amptune-out/net"]
import gates, net_amptuned
model = net_amptuned.make_model()
softmax, seen = torch.softmax, []
gates.torch.softmax = lambda x, dim: seen.append(x.dtype) or softmax(x, dim)
model(torch.randn(4, 16))
print(*seen, model.first(torch.randn(4, 16)).dtype)
"""
    run = subprocess.run([sys.executable, "-c", dtypes], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["torch.float32", "torch.bfloat16"], run.stderr


GAINS = """
import torch
from torch import nn
import torch.nn.functional as F


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.gain = nn.Parameter(torch.ones(32))

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q * self.gain, k * self.gain, v)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Attention() for _ in range(2)])
        self.head = nn.Linear(32, 8)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def make_model():
    return Net()


def make_batch():
    return torch.randn(2, 6, 32), torch.randn(2, 6, 8)


def loss_fn(output, batch):
    return (output.float() - batch[1]).square().mean()
"""


def test_formats_that_meet_are_refused_with_the_change_that_makes_the_plan_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(GAINS)
    sites = dict.fromkeys(("blocks.0.qkv", "blocks.1.qkv", "head"), BF16)
    write_plan(tmp_path, Plan(sites=sites))
    result = amptune_here(tmp_path, "apply", "plan.json", "net.py")
    assert (result.returncode, result.stdout) == (3, "")
    assert "net.py:15: blocks.0 (net.Attention)" in result.stderr
    pins = [f"blocks.{n}#scaled_dot_product_attention.0" for n in range(2)]
    changes = ", ".join(f'"{pin}": {{"format": "fp32", "how": "source"}}' for pin in pins)
    assert f"this makes it run (tried): {changes}" in result.stderr
    assert "cast blocks.0.gain, blocks.1.gain, which no plan casts" in result.stderr
    write_plan(tmp_path, Plan(sites=sites | dict.fromkeys(pins, PIN)))
    assert amptune_here(tmp_path, "apply", "plan.json", "net.py").returncode == 0
    (tmp_path / "net.py").write_text(GAINS.replace("* self.gain", "* self.gain.to(q.dtype)"))
    write_plan(tmp_path, Plan(sites=sites))
    assert amptune_here(tmp_path, "apply", "plan.json", "net.py").returncode == 0


def test_where_the_op_cannot_be_pinned_the_layers_before_it_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, net = GAINS.split("class Net")
    (tmp_path / "attentions.py").write_text(head)
    (tmp_path / "net.py").write_text(
        f"import torch\nfrom torch import nn\nfrom attentions import Attention\nclass Net{net}"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sites = dict.fromkeys(("blocks.0.qkv", "blocks.1.qkv", "head"), BF16)
    write_plan(tmp_path, Plan(sites=sites))
    result = amptune_here(tmp_path, "apply", "plan.json", "net.py")
    assert (result.returncode, result.stdout) == (3, "")
    assert 'this makes it run (tried): "blocks.0.qkv": {"format": "fp32"}, "blocks.1.qkv"' in result.stderr
    write_plan(tmp_path, Plan(sites={"head": BF16, **{f"blocks.{n}.qkv": SitePlan(Format.FP32) for n in range(2)}}))
    assert amptune_here(tmp_path, "apply", "plan.json", "net.py").returncode == 0


ADDED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.shift = nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return self.fc(x) + self.shift


def make_model():
    return Net()


def make_batch():
    return torch.randn(4, 8), torch.zeros(4, 8)


def loss_fn(output, batch):
    return (output.float() - batch[1]).square().mean()
"""


def test_what_is_computed_from_a_tensor_of_the_model_is_cast_in_the_patched_file(tmp_path: Path) -> None:
    """The product takes one dtype, so that the file would not run without; it trains as the model with the plan."""
    source = ADDED.replace("return self.fc(x) + self.shift", "return self.fc(x) @ torch.diag(self.shift).exp()")
    (tmp_path / "net.py").write_text(source)
    plan = Plan(sites={"fc": SitePlan(Format.BF16), "shift": SitePlan(Format.BF16, how="late")})
    write_plan(tmp_path, plan)
    result = amptune_here(tmp_path, "apply", "plan.json", "net.py")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "amptune-out/net"
    assert '"shift": {"format": "bf16", "how": "late"}' in (out / "net_amptuned.py").read_text()
    target = load_target(TargetSpec(str(tmp_path / "net.py")))

    def losses(make_model: Callable[[], nn.Module], loss_fn: Callable[..., torch.Tensor]) -> list[float]:
        torch.manual_seed(0)
        model, found = make_model(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            batch = target.make_batch()
            loss = loss_fn(model(batch[0]), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    patched = load_target(TargetSpec(str(out / "net_amptuned.py")))
    expected = losses(lambda: apply(target.make_model(), plan).model, target.loss)
    assert losses(patched.make_model, patched.loss) == expected
    assert len(set(expected)) == 3


def test_a_tensor_that_the_model_holds_is_cast_in_the_patched_file(tmp_path: Path) -> None:
    """The file is run as a user runs it: the stream that the parameter joins has the plan's format."""
    (tmp_path / "net.py").write_text(ADDED)
    write_plan(tmp_path, Plan(sites={"fc": SitePlan(Format.BF16), "shift": SitePlan(Format.BF16, how="own")}))
    result = amptune_here(tmp_path, "apply", "plan.json", "net.py")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "amptune-out/net"
    assert '"shift": "bf16"' in (out / "net_amptuned.py").read_text()
    run = "import net_amptuned as net; print(net.make_model()(net.make_batch()[0]).dtype)"
    shown = subprocess.run([sys.executable, "-c", run], cwd=out, capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == "torch.bfloat16", shown.stderr


def test_a_reason_that_speaks_of_the_markers_is_no_marker(folder: Path) -> None:
    why = "as I had it:\n# >>> amptune, # <<< amptune"
    write_plan(folder, Plan(sites={"fc1": SitePlan(Format.BF16, why=why), "fc2": SitePlan(Format.BF16)}))
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert result.returncode == 0, result.stderr
    assert amptune_here(folder, "apply", "plan.json", "net.py", "--out", "amptune-out/net").returncode == 0


def test_a_decision_that_nothing_would_put_in_force_is_refused(folder: Path) -> None:
    write_plan(folder, Plan(sites={**PLAN.sites, "#softmax.0": SitePlan(Format.BF16, how="source")}))
    result = amptune_here(folder, "apply", "plan.json", "net.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert "sites['#softmax.0']: 'how': 'source' computes an operation in fp32, and the format is bf16" in result.stderr
    assert "leave the site out" in result.stderr
