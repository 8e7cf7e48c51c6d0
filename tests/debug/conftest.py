from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from amptune.capture import TargetSpec
from amptune.debug.result import DebugResult
from amptune.debug.run import debug
from amptune.debug.session import DebugOptions
from amptune.tune.running.device import Device

HEAD = """
import torch
from torch import nn
import torch.nn.functional as F
"""
PART = """
class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x):
        x = self.fc(x)
"""
SMALL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(32, 32)
        self.part = Part()
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.part(F.relu(self.inp(x))))


def make_model():
    return Net()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 32, generator=generator), torch.randint(10, (8,), generator=generator)


def loss_fn(output, batch):
    return F.cross_entropy(output.float(), batch[1])
"""


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Of the tests here, all."""


Run = Callable[..., DebugResult]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Debugs the text of a model file, written as ``model.py`` in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run_source(source: str, dtype: str = "fp16", scaler: bool = True, steps: int = 2, **spec: str) -> DebugResult:
        (tmp_path / "model.py").write_text(source)
        options = DebugOptions(dtype, scaler, steps)  # type: ignore[arg-type]
        return debug(TargetSpec("model.py", **spec), Device("cpu"), options)  # type: ignore[arg-type]

    return run_source


def part(body: str, before: str = "") -> str:
    """A model whose ``part`` runs ``body`` on the output ``x`` of a Linear, and gives back ``y``."""
    lines = textwrap.indent(textwrap.dedent(body).strip(), " " * 8)
    return f"{HEAD}\n{textwrap.dedent(before)}\n{PART}{lines}\n        return y\n\n{SMALL}"


def line_of(source: str, mark: str = "# BAD") -> int:
    """The line that ends in the mark."""
    return next(number for number, line in enumerate(source.splitlines(), 1) if line.endswith(mark))
