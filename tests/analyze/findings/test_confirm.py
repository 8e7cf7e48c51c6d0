"""What breaks in the step of --calibrate is an error where it began, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from amptune.analyze.findings.confirm import beginnings
from amptune.core.finding import Finding, Severity
from amptune.core.observed import Observed, Stat
from tests.analyze.graphs import graph_of, linear, op
from tests.analyze.test_command import run
from tests.analyze.test_ranges import NET, judged, loaded


def numeric(body: str, tmp_path: Path) -> list[Finding]:
    found = judged(*loaded(tmp_path, NET.format(body=body)), observe=True).findings
    return [each for each in found if each.rule in ("G203", "G204", "G205", "G206")]


BROKEN = {
    "root": (
        "h = self.fc(image)\n        return self.fc((h[:1] - h).square().sum(-1, keepdim=True).sqrt() + h)",
        "G206",
    ),
    "log": ("return torch.log(torch.relu(self.fc(image) - 9))", "G204"),
    "div": ("h = torch.relu(self.fc(image) - 9)\n        return h / h.sum(-1, keepdim=True)", "G205"),
    "exp": ("h = torch.exp(1000 * self.fc(image))\n        return h / h.sum(-1, keepdim=True)", "G203"),
}


@pytest.mark.parametrize(("body", "rule"), BROKEN.values(), ids=BROKEN)
def test_what_broke_is_an_error(body: str, rule: str, tmp_path: Path) -> None:
    broke = [each for each in numeric(body, tmp_path) if each.severity is Severity.ERROR]
    assert [each.rule for each in broke] == [rule]
    assert "so it was in a step on the batch in FP32" in broke[0].message


def test_what_did_not_break_stays_what_it_is(tmp_path: Path) -> None:
    body = (
        "h = self.fc(image)\n        shares = h.masked_fill(h > h.mean(), float('-inf')).softmax(-1)\n"
        "        return shares / h.norm(dim=-1, keepdim=True)"
    )
    (found,) = numeric(body, tmp_path)
    assert found.severity is Severity.INFO
    assert "in a step on the batch" not in found.message


def test_what_follows_from_a_break_is_not_blamed() -> None:
    graph = graph_of(linear("fc", "<input>", 8, 16, 16), op("log", "log", "fc"), op("exp", "exp", "log"))
    fine, bad = Stat(0.0, 1.0, 8), Stat(0.0, 1.0, 8, nonfinite=1)
    step = Observed({"fc": fine, "log": bad, "exp": bad}, {}, loss=None)
    assert not list(beginnings(graph, Observed({"fc": fine, "log": bad, "exp": fine}, {}, loss=None)))
    assert [site.id for site, _ in beginnings(graph, step)] == ["log"]
    backward = Observed({}, {"fc": bad, "log": bad, "exp": fine}, loss=1.0)
    assert [site.id for site, _ in beginnings(graph, backward)] == ["exp"]
    assert not list(beginnings(graph, Observed({"fc": fine, "log": bad}, {"log": fine}, loss=1.0)))


def test_a_step_that_breaks_where_no_rule_looks_is_noted(tmp_path: Path) -> None:
    source = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        hidden = (self.fc(x) > 0) * 1e35
        shares = (self.fc(x) - hidden).softmax(-1)
        return shares + self.fc(x) * 1e25 * 1e25


def make_model():
    return Model()


def make_batch():
    return torch.randn(8, 16), None


def loss_fn(output, batch):
    return output.mean()
"""
    done = run(tmp_path, "--gpu", "h100", "--calibrate", "--format", "json", source=source)
    assert "note: the step on the batch broke in FP32 already, first at model.py:13 (mul of " in done.stderr


def test_findings_are_given_where_the_step_fails(tmp_path: Path) -> None:
    source = """\
import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x):
        return torch.log(torch.softmax(self.fc(x), -1))


def make_model():
    return Model()


def make_batch():
    return torch.randn(16, 16), torch.full((16,), 99)


def loss_fn(output, batch):
    return F.nll_loss(output, batch[1])
"""
    done = run(tmp_path, "--gpu", "h100", "--calibrate", "--format", "json", source=source)
    assert [found["rule"] for found in json.loads(done.stdout)["findings"] if found["line"] == 12] == ["G204"]
    assert "error: model.py:24: the step for --calibrate failed: IndexError: Target 99 is out of bounds" in done.stderr
    assert done.returncode == 3
