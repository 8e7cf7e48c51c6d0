"""Models whose structure is drawn or changes, or that hold 16-bit or complex weights, or checkpoint layers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from amptune.tune import search
from tests.inprocess import amptune
from tests.tune.conftest import MLP

LAYERS = MLP.replace(
    "def make_model():\n    return Net()",
    """class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.net = Net()
        self.more = nn.ModuleList(nn.Linear(13, 13) for _ in range(depth))

    def forward(self, ids):
        x = self.net(ids)
        for layer in self.more:
            x = layer(x)
        return x


def make_model():
    import os, random, time
    return Deep({depth})""",
)


@pytest.mark.parametrize("command", [("tune", "--budget", "2"), ("bench", "--rounds", "1")], ids=["tune", "bench"])
def test_a_structure_that_changes_each_time_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "count").write_text("")
    depth = "open('count', 'a').write('.') and os.path.getsize('count')"
    (tmp_path / "net.py").write_text(LAYERS.replace("{depth}", depth))
    result = amptune(tmp_path, command[0], "net.py", *command[1:], "--steps", "2", "--device", "cpu")
    assert (result.returncode, result.stdout) == (3, "")
    assert "make_model() builds another model each time: only some have more." in result.stderr


def test_a_structure_that_is_drawn_is_the_same_in_both_processes(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(LAYERS.replace("{depth}", "random.randint(1, 10**6) % 7"))
    result = amptune(tmp_path, "tune", "net.py", "--budget", "2", "--steps", "2", "--device", "cpu")
    assert result.returncode == 0, result.stderr


def test_a_model_with_16_bit_weights_of_its_own_is_given_back_as_it_is(tmp_path: Path) -> None:
    own = MLP.replace("return Net()", "return Net().bfloat16()").replace("fused=True", "fused=False")
    (tmp_path / "net.py").write_text(own)
    result = amptune(tmp_path, "tune", "net.py", "--budget", "1", "--steps", "2", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "amptune-out/net/net_amptuned.py").exists()


CHECKPOINTED = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat) / 8)
        self.layer = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.GELU(), nn.Linear(32, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = x + (x.to(torch.cfloat) @ self.mix).real
        return self.head(x + checkpoint(self.layer, x, use_reentrant=False))


def make_model():
    return Net()


def make_batch():
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(-1)


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch[1])
"""


COMPLEX_LAYER = CHECKPOINTED.replace(
    "nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat) / 8)", "nn.Linear(8, 8, dtype=torch.cfloat)"
).replace("(x.to(torch.cfloat) @ self.mix)", "self.mix(x.to(torch.cfloat))")


@pytest.mark.parametrize("source", [CHECKPOINTED, COMPLEX_LAYER], ids=["parameter", "layer"])
def test_checkpointed_layers_with_dropout_and_complex_parameters_are_searched(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "GIVE_UP_MS", math.inf)  # on a CPU a step in BF16 may meet a slow moment
    (tmp_path / "net.py").write_text(source)
    result = amptune(tmp_path, "tune", "net.py", "--budget", "4", "--steps", "3", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    trials = json.loads((tmp_path / "amptune-out/net/result.json").read_text())["trials"]
    # torch's own GradScaler takes no gradients of complex parameters; no plan is tried that would need it.
    failed = {trial["recipe"]: trial["reason"] for trial in trials if trial["state"] == "failed"}
    assert failed == {
        "autocast-fp16": "torch's loss scaling, which FP16 needs, takes no complex parameters: BF16 does without"
    }
    assert {trial["recipe"]: trial["state"] for trial in trials}["autocast-bf16"] == "valid"
    assert any(trial["kind"] != "stock" for trial in trials)
