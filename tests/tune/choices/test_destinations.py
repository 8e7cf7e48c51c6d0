"""Layers whose outputs are added or written into tensors that the model makes in FP32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from amptune.apply.patching import apply_plan_file
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.graph import INPUT, PrecisionGraph
from amptune.core.plan import Plan
from amptune.core.tables import CostTable
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.explain import with_reasons
from amptune.tune.choices.edges import edges_of
from amptune.tune.choices.space import Space
from amptune.tune.outputs.emit import plan_text
from amptune.tune.run import job_of
from amptune.tune.running.recipes import plan_candidate
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker

MESSAGES = """
import torch
from torch import nn


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.message = nn.Linear(16, 24)
        self.update = nn.Linear(24, 16)

    def forward(self, x, source, target):
        gathered = torch.zeros(x.size(0), 24)
        {line}
        return nn.functional.silu(self.update(gathered))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(Conv() for _ in range(2))
        self.head = nn.Linear(16, 3)

    def forward(self, x, source, target):
        for conv in self.convs:
            x = x + conv(x, source, target)
        return self.head(x)


def make_model():
    return Net()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(10, (2, 40), generator=generator)
    return {{"x": torch.randn(10, 16, generator=generator), "source": ends[0], "target": ends[1],
            "y": torch.randint(3, (10,), generator=generator)}}


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch["y"])
"""
LINES = {
    "in place": "gathered.index_add_(0, target, self.message(x)[source])",
    "a function": "gathered = torch.index_add(gathered, 0, target, self.message(x)[source])",
    "scatter_add": "gathered.scatter_add_(0, target[:, None].expand(-1, 24), self.message(x)[source])",
    "index_put": "gathered = gathered.index_put((target,), self.message(x)[source], accumulate=True)",
    "index_copy": "gathered = gathered.index_copy(0, torch.arange(10), self.message(x))",
}
NOT_PINNED = {
    "a subscript": "gathered[target] = self.message(x)[source]",
    "a mixture": "gathered = torch.lerp(self.message(x), torch.ones(24), 0.5)",
}


@dataclasses.dataclass
class Case:
    worker: Worker
    graph: PrecisionGraph
    space: Space

    def low_plan(self) -> Plan:
        """BF16 wherever that is legal."""
        chosen = {group.name: "bf16" for group in self.space.module_groups()}
        return self.space.decode(self.space.point(chosen), CostTable({}, {}), {})


def case(tmp_path: Path, line: str) -> Case:
    (tmp_path / "net.py").write_text(MESSAGES.format(line=line))
    target = load_target(TargetSpec(str(tmp_path / "net.py")))
    captured = capture(target)
    options = TuneOptions(target.spec, out=tmp_path / "out", device="cpu", steps=3)
    worker = Worker(job_of(options, target, captured), lambda *_: None)
    return Case(worker, captured.graph, worker.space(captured.graph))


@pytest.mark.parametrize("name", LINES)
def test_messages_in_16_bits_are_measured_and_shipped(tmp_path: Path, name: str) -> None:
    made = case(tmp_path, LINES[name])
    plan = made.low_plan()
    assert all(plan.sites[f"convs.{n}.message"].format is Format.BF16 for n in range(2))
    pinned = [site for site, entry in plan.sites.items() if entry.how == "source" and "softmax" not in site]
    assert len(pinned) == 2
    measured = made.worker.trial(plan_candidate(plan), None)
    assert measured.mismatches == ()
    assert measured.quality is not None
    assert measured.quality.valid
    (tmp_path / "plan.json").write_text(plan_text(plan))
    apply_plan_file(tmp_path / "plan.json", TargetSpec(str(tmp_path / "net.py")), tmp_path / "applied")
    patched = (tmp_path / "applied/net_amptuned.py").read_text()
    assert patched.count("# amptune: fp32") == 1
    target = load_target(TargetSpec(str(tmp_path / "applied/net_amptuned.py")))
    model, batch, seen = target.make_model(), target.make_batch(), []
    model.convs[1].message.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    target.loss(target.call(model, batch), batch).backward()
    assert seen == [torch.bfloat16]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_nothing_is_pinned_where_all_that_arrives_is_fp32(tmp_path: Path) -> None:
    made = case(tmp_path, LINES["in place"])
    plan = made.space.decode(made.space.point({"head": "bf16"}), CostTable({}, {}), {})
    assert not any(entry.how == "source" for entry in plan.sites.values())


def test_the_casts_there_and_back_are_priced_and_explained(tmp_path: Path) -> None:
    made = case(tmp_path, LINES["in place"])
    edges = edges_of(made.graph, made.space)
    found = [edge for edge in edges if edge.sources == ("convs.0.message",) and edge.into == (INPUT,)]
    assert [(edge.numel, edge.share) for edge in found] == [(40 * 24, 1.0)]
    plan = made.low_plan()
    chosen = made.space.point({group.name: "bf16" for group in made.space.module_groups()})
    reasons = with_reasons(plan, CostModel(made.space, CostTable({}, {}), edges), chosen).sites
    assert "writes into a tensor that the model makes in fp32" in reasons["convs.0#index_add.0"].why


@pytest.mark.parametrize("name", NOT_PINNED)
def test_what_cannot_be_pinned_stays_in_fp32(tmp_path: Path, name: str) -> None:
    made = case(tmp_path, NOT_PINNED[name])
    fixed = {site for group in made.space.groups if group.kind == "fixed" for site in group.sites}
    assert fixed == {"convs.0.message", "convs.1.message"}
    plan = json.loads(plan_text(made.low_plan()))
    assert plan["sites"]["convs.0.message"]["format"] == "fp32"
