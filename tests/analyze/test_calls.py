"""Helpers, modules and loops: each call of a site is judged for itself, and findings name the call that breaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.analyze.assumed.evidence import gather
from amptune.analyze.runner import Analysis, Question, analyze
from amptune.capture import capture, capturing
from amptune.capture.load import load_target
from amptune.capture.target import TargetSpec
from amptune.core.hardware import gpus_named

FILE = """\
import torch
from torch import nn


def shares(x):
    e = torch.exp(x)
    return e / e.sum(-1, keepdim=True)


class Gate(nn.Module):
    def forward(self, x):
        return torch.exp(2 * x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)
        self.gate = Gate()

    def forward(self, x):
        h = self.fc(x)
        {body}


def make_model():
    return Net()


def make_batch():
    return torch.rand(4, 32)


def loss_fn(output, batch):
    return output.float().mean()
"""
BODY_LINE = 1 + FILE.splitlines().index("        {body}")


def analysed(body: str, tmp_path: Path, *, select: str = "G2") -> Analysis:
    path = tmp_path / "model.py"
    path.write_text(FILE.replace("{body}", body.replace("\n", "\n        ")))
    target = load_target(TargetSpec(str(path)))
    captured = capture(target, frontends=("record-fake",))
    question = Question(gpus_named(("h100",)), select=(select,), evidence=gather(target, captured))
    return analyze(captured, question)


def test_the_unstable_call_of_a_helper_is_named_and_the_stable_one_is_not(tmp_path: Path) -> None:
    body = "a = shares(h - h.amax(-1, keepdim=True))\nreturn a + shares(h)"
    (found,) = analysed(body, tmp_path, select="G203").findings
    assert found.site == "#exp.0"
    assert found.message.endswith(f"[call 2 of 2, made at {found.location.path}:{BODY_LINE + 1}]")
    (call,) = found.evidence["calls"]
    assert (call["call"], call["of"], call["line"]) == (2, 2, f"{found.location.path}:{BODY_LINE + 1}")
    assert "amax" not in found.evidence["chain"]


def test_what_all_calls_share_is_one_finding_without_a_call(tmp_path: Path) -> None:
    (found,) = analysed("return shares(h) + shares(-h)", tmp_path, select="G203").findings
    assert "call" not in found.message
    assert "calls" not in found.evidence


def test_the_steps_of_a_loop_over_running_sums_have_one_reason(tmp_path: Path) -> None:
    body = (
        "over, under = torch.zeros_like(h[0]), torch.zeros_like(h[0])\n"
        "out = []\n"
        "for t in range(4):\n"
        "    e = torch.exp(h[t])\n"
        "    over, under = 0.9 * over + e * x[t], 0.9 * under + e\n"
        "    out.append(over / under)\n"
        "return torch.stack(out)"
    )
    found = [each for each in analysed(body, tmp_path).findings if each.rule == "G203"]
    assert len(found) == 1
    assert "is divided by what is made of exponentials" in found[0].message
    assert "call" not in found[0].message


def test_stable_calls_beside_each_other_are_not_blamed(tmp_path: Path) -> None:
    body = "t = torch.tanh(h)\nreturn shares(h - h.amax(-1, keepdim=True)) + shares(t)"
    assert not analysed(body, tmp_path, select="G203").findings


def test_a_module_that_is_called_twice(tmp_path: Path) -> None:
    (found,) = analysed("return self.gate(torch.tanh(h)) + self.gate(h)", tmp_path, select="G203").findings
    assert found.site == "gate#exp.0"
    assert "call 2 of 2" in found.message


def test_a_loop_whose_bound_grows_is_bounded_turn_by_turn(tmp_path: Path) -> None:
    body = "s = torch.tanh(h)\nfor _ in range(5):\n    s = s * 0.5 + torch.tanh(h)\nreturn torch.exp(s)"
    assert not analysed(body, tmp_path, select="G203").findings


def test_the_report_of_a_site_joins_the_bounds_of_its_calls(tmp_path: Path) -> None:
    found = analysed("return self.gate(torch.tanh(h)) + self.gate(torch.relu(-h.abs()))", tmp_path)
    sites = found.ranges["sites"]
    assert sites["gate#mul.0"]["bound"] == {"low": -2.0, "high": 2.0}
    assert not any("@" in name for name in sites)


def test_a_long_chain_of_calls_is_followed_without_recursion(tmp_path: Path) -> None:
    body = "s = h\nfor _ in range(600):\n    s = s + h\nreturn torch.exp(torch.tanh(s * s))"
    assert not analysed(body, tmp_path, select="G203").findings


def test_more_calls_than_are_judged_share_one_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "MOST_CALLS", -1_000)
    body = "s = torch.tanh(h)\nfor _ in range(5):\n    s = s * 0.5 + torch.tanh(h)\nreturn s"
    assert analysed(body, tmp_path).ranges["sites"]["#add.0"]["bound"] == {"low": None, "high": None}


def test_gradients_inside_a_forward_are_said_to_be_unpriced(tmp_path: Path) -> None:
    body = "e = h.sum()\n(force,) = torch.autograd.grad(e, self.fc.weight, create_graph=True)\nreturn force * e"
    capture_of = analysed(body, tmp_path).capture
    assert capture_of is not None
    (note,) = [each for each in capture_of.notes if "takes gradients itself" in each]
    assert f"model.py:{BODY_LINE + 1})" in note
    assert not [each for each in capture_of.notes if "outside amptune's table" in each]


def test_what_runs_under_vmap_is_said_to_be_one_sample_of_many(tmp_path: Path) -> None:
    found = analysed("return torch.func.vmap(lambda row: torch.tanh(row + self.fc.bias))(h)", tmp_path)
    assert found.capture is not None
    (note,) = [each for each in found.capture.notes if "torch.func.vmap" in each]
    assert f"model.py:{BODY_LINE})" in note
    assert not [each for each in analysed("return torch.tanh(h)", tmp_path).capture.notes if "vmap" in each]


def test_constants_inside_vmap_are_not_read(tmp_path: Path) -> None:
    body = (
        "rows = torch.arange(4.0).repeat(h.shape[0], 1)\nreturn torch.func.vmap(lambda row: row.exp())(rows).sum() + h"
    )
    assert analysed(body, tmp_path).capture
