"""The loss scale from the skipped steps of a trial to the training loop of the user, who has the files alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amptune.capture import TargetSpec
from amptune.core.choice import FP16, FP32
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph
from amptune.tune import run as tuning
from amptune.tune.choices.space import Space
from amptune.tune.running.batches import Batches
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.timing import StepTime
from amptune.tune.running.training import Workbench
from amptune.tune.study.progress import Progress
from amptune.tune.workers import worker as working
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])

    def forward(self, x):
        return self.layers[1]((F.relu(self.layers[0](x)) / 4096) * 4096)


def make_model():
    return Net()


def train_batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        x = torch.randn(32, 16, generator=generator)
        yield x, x.argmax(-1)


def make_batch():
    return next(train_batches())


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])


def make_optimizer(params):
    return torch.optim.AdamW(params, lr=3e-3)
"""
"""Between two layers the gradient is far larger than at either of them, where gradients are recorded."""
LOOP = """
import json, sys
import torch
from net_amptuned import loss_fn, make_model, make_optimizer, train_batches

assert "amptune" not in sys.modules
torch.manual_seed(0)
model = make_model()
optimizer = make_optimizer(model.parameters())
with open("scaler.json") as file:
    scaler = torch.amp.GradScaler("cpu", **json.load(file)["gradscaler"])
first, losses = scaler.get_scale(), []
for _, batch in zip(range(20), train_batches()):
    optimizer.zero_grad()
    loss = loss_fn(model(batch[0]), batch)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    losses.append(loss.item())
print(json.dumps([first, scaler.get_scale(), losses[0], losses[-1]]))
"""


class _Worker(working.Worker):
    """A worker of a device on which FP16 is the fastest format, and which has no other beside FP32."""

    def space(self, graph: PrecisionGraph) -> Space:
        space = super().space(graph)
        groups = (
            dataclasses.replace(group, choices=(FP32, FP16)) if group.kind == "module" else group
            for group in space.groups
        )
        return dataclasses.replace(space, groups=tuple(groups))


class _Here:
    """A worker process that is none."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._worker: _Worker | None = None

    def request(self, name: str, *arguments: Any, timeout: float) -> Any:
        if self._worker is None:
            assert self.job is not None
            self._worker = _Worker(self.job, lambda *_: None)
        return getattr(self._worker, name)(*arguments)


@contextlib.contextmanager
def _worker_here(_progress: Progress) -> Iterator[_Here]:
    yield _Here()


def _step(candidate: Candidate) -> StepTime:
    """The time of a step: the less, the more sites a plan has in FP16."""
    sites = candidate.plan.sites.values() if candidate.plan else ()
    ms = 10.0 - sum(site.format is Format.FP16 for site in sites)
    return StepTime.of([ms * 0.999, ms, ms * 1.001])


def _measured(_bench: Workbench, candidate: Candidate, *_: Any) -> tuple[StepTime, None, None]:
    return _step(candidate), None, None


def _interleaved(
    _bench: Workbench, candidates: list[Candidate], _batches: Batches, rounds: int, _progress: object
) -> list[list[StepTime]]:
    return [[_step(candidate)] * rounds for candidate in candidates]


def test_a_scale_that_skipped_steps_brought_down_is_the_one_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "started_worker", _worker_here)
    monkeypatch.setattr(working, "measure_step", _measured)
    monkeypatch.setattr(working, "measure_interleaved", _interleaved)
    (tmp_path / "net.py").write_text(SOURCE)
    options = TuneOptions(TargetSpec(str(tmp_path / "net.py")), tmp_path / "out", budget=7, steps=40)
    result = tuning.tune(options, Progress(7))
    best = result.verdict.record.outcome
    assert result.verdict.kind == "plan"
    assert best.loss_scale is not None, "no step was skipped"
    assert abs(best.loss_gap) < 0.005
    number = result.verdict.record.number
    (trial,) = (trial for trial in result.data["trials"] if trial["number"] == number)
    assert trial["loss_scale"] == best.loss_scale
    scaler = json.loads((tmp_path / "out/scaler.json").read_text())["gradscaler"]
    assert scaler["init_scale"] == best.loss_scale
    assert result.plan.scaler.init_scale == best.loss_scale
    loop = subprocess.run(
        [sys.executable, "-c", LOOP], cwd=tmp_path / "out", env={"PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert loop.returncode == 0, loop.stderr
    first, last, before, after = json.loads(loop.stdout)
    assert first == last == best.loss_scale, "the user's loop skips steps"
    assert after < before
