"""What only a CUDA device can show: run with ``pytest -m gpu``."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

from amptune.capture import Target, TargetSpec, load_target
from amptune.core.formats import Format
from amptune.core.plan import Plan, ScalerConfig, SitePlan
from amptune.tune.choices.space import COMPILED_LOSS
from amptune.tune.prices.modelloss import ModelLoss
from amptune.tune.quality.gate import MIN_COSINE
from amptune.tune.quality.quality import Quality, judge
from amptune.tune.quality.reference import measure_reference
from amptune.tune.run import tune
from amptune.tune.running.batches import load_batches
from amptune.tune.running.device import Device
from amptune.tune.running.recipes import Candidate, plan_candidate, stock_candidates
from amptune.tune.running.timing import measure_step
from amptune.tune.running.training import Workbench
from amptune.tune.study.progress import Progress
from amptune.tune.workers.options import TuneOptions

from ..tune.conftest import MLP

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
]


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MLP)
    return path


def test_stock_recipes_and_plans_are_valid(model_file: Path) -> None:
    device = Device("cuda")
    target = load_target(TargetSpec(str(model_file)))
    bench = Workbench.build(target, device, seed=0)
    batches = load_batches(target, 10, device.torch)
    reference = measure_reference(bench, batches, tolerance=0.02, seed=0)
    fp16 = Plan(sites={n: SitePlan(Format.FP16) for n in ("embed", "norm", "fc1", "fc2")},
                scaler=ScalerConfig(enabled=True))  # fmt: skip
    padded = Plan(sites={"fc2": SitePlan(Format.BF16, pad=64)}, loss_compile=True)
    for candidate in (*stock_candidates(device, bench.model), plan_candidate(fp16), plan_candidate(padded)):
        quality = judge(bench, candidate, batches, reference, seed=0)
        if candidate.float8:
            assert_fp8_is_judged_by_its_rounding(quality)
        else:
            assert quality.valid, (candidate.name, quality.reason)
        step, memory, _ = measure_step(bench, candidate, batches)
        assert step is not None
        assert memory is not None
        assert memory > 0


KEPT_LOSS = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make_model():
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=4, vocab_size=50000, use_cache=False)
    )


def make_batch():
    ids = torch.randint(0, 50000, (8, 256))
    return {"input_ids": ids, "labels": ids}
"""


CALLED_LOSS = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50000, 128)
        self.up = nn.Linear(128, 512)
        self.drop = nn.Dropout(0.1)
        self.down = nn.Linear(512, 128)
        self.head = nn.Linear(128, 50000)

    def forward(self, ids, labels):
        logits = self.head(self.down(self.drop(F.gelu(self.up(self.embed(ids))))))
        return logits, F.cross_entropy(logits.view(-1, 50000), labels.view(-1))


def make_model():
    return Net()


def make_batch():
    ids = torch.randint(0, 50000, (8, 256))
    return {"ids": ids, "labels": ids}


def loss_fn(output, batch):
    return output[1]
"""
ways = pytest.mark.parametrize("source", [KEPT_LOSS, CALLED_LOSS], ids=["kept", "called"])


@ways
def test_a_loss_that_the_model_makes_is_faster_compiled(tmp_path: Path, source: str) -> None:
    (tmp_path / "lm.py").write_text(source)
    target, device = load_target(TargetSpec(str(tmp_path / "lm.py"))), Device("cuda")
    bench = Workbench.build(target, device, seed=0)
    batch = load_batches(target, 2, device.torch).train[0]
    found = ModelLoss(bench, batch).measure(("fp32", COMPILED_LOSS), Format.BF16)
    assert found[COMPILED_LOSS] < found["fp32"], "the logits in FP32 are 0.4 GB, which are never written"


@ways
def test_a_loss_that_the_model_makes_is_a_choice(tmp_path: Path, source: str) -> None:
    (tmp_path / "lm.py").write_text(source)
    options = TuneOptions(TargetSpec(str(tmp_path / "lm.py")), tmp_path / "out", budget=9, device="cuda", steps=5)
    tune(options, Progress(9))
    result = json.loads((tmp_path / "out/result.json").read_text())
    states = {(trial["point"][":loss"], trial["state"]) for trial in result["trials"] if trial["kind"] != "stock"}
    assert (COMPILED_LOSS, "valid") in states


def assert_fp8_is_judged_by_its_rounding(quality: Quality) -> None:
    """This model is at the bar in FP8, on either side of it by the seed: its small gradients, which softmax makes
    cancel, had cosines of 0.958 to 0.995 in six seeds of an FP32 model whose ``fc1`` was rounded to e4m3 row by row.
    """
    assert quality.gate is not None
    assert 0.94 < quality.gate.worst_cosine < 0.9999
    assert abs(quality.loss_gap) < 0.02
    assert quality.valid or (quality.gate.worst_cosine < MIN_COSINE and "cosine" in quality.reason), quality.reason


def test_a_whole_search(model_file: Path, tmp_path: Path) -> None:
    options = TuneOptions(TargetSpec(str(model_file)), tmp_path / "out", budget=10, device="cuda", steps=5)
    tune(options, Progress(10))
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert {entry["recipe"] for entry in result["stock"]} >= {"fp32", "autocast-fp16"}
    assert result["device"]["gpu"] == torch.cuda.get_device_name()


WIDE = """
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Linear(2048, 8192), nn.ReLU(), nn.Linear(8192, 2048))


def train_batches():
    while True:
        yield torch.randn(512, 2048), torch.randn(512, 2048)


def make_batch():
    return next(train_batches())


def loss_fn(output, batch):
    return (output.float() - batch[1]).square().mean()
"""


def memory_of_own_loop(target: Target) -> int:
    """Bytes at the peak of a training loop as its user writes it, under bfloat16 autocast."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = target.make_model().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    batch = tuple(tensor.cuda() for tensor in target.make_batch())
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = target.loss(model(batch[0]), batch)
        loss.backward()
        optimizer.step()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("share", [1.0, 0.0], ids=["kept on the device", "kept on the host"])
def test_memory_is_that_of_the_users_own_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Not that of the weights, gradients and batches that the worker keeps for its judgement, 0.5 GiB here."""
    monkeypatch.setattr("amptune.tune.running.keeping.DEVICE_SHARE", share)
    path = tmp_path / "wide.py"
    path.write_text(WIDE)
    target = load_target(TargetSpec(str(path)))
    expected, before = memory_of_own_loop(target), torch.cuda.memory_allocated()
    bench = Workbench.build(target, Device("cuda"), seed=0)
    batches = load_batches(target, 10, torch.device("cuda"))
    measure_reference(bench, batches, tolerance=0.02, seed=0)
    _, memory, _ = measure_step(bench, Candidate("autocast-bf16", autocast=Format.BF16), batches)
    assert memory is not None
    assert memory - before == pytest.approx(expected, rel=0.02)


IMAGES = """
import torch
from torch import nn


def make_model():
    layers = [layer for i in range(4) for layer in (nn.Conv2d(64 if i else 3, 64, 3), nn.BatchNorm2d(64), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def train_batches():
    while True:
        yield torch.randn(160, 3, 128, 128), torch.randn(160, 10)


def make_batch():
    return next(train_batches())


def loss_fn(output, batch):
    return (output.float() - batch[1]).square().mean()
"""


def test_so_it_is_in_a_search(tmp_path: Path) -> None:
    """What the stages before the trials looked at has left the device: it was several times the memory of a step.

    The worker's further streams have workspaces of cuBLAS, 66 MiB on an H200, which 3 GiB of images make small.
    """
    path = tmp_path / "images.py"
    path.write_text(IMAGES)
    expected = memory_of_own_loop(load_target(TargetSpec(str(path))))
    tune(TuneOptions(TargetSpec(str(path)), tmp_path / "out", budget=5, device="cuda", steps=5), Progress(5))
    result = json.loads((tmp_path / "out/result.json").read_text())
    (found,) = (entry["memory_bytes"] for entry in result["stock"] if entry["recipe"] == "autocast-bf16")
    assert found == pytest.approx(expected, rel=0.05)


def test_tf32_is_off_in_the_reference() -> None:
    x = torch.randn(512, 512, device="cuda")
    exact = x.double() @ x.double()
    from amptune.tune.running.recipes import backend_flags

    with backend_flags(False):
        assert (x @ x - exact).abs().max() < 1e-3
    assert Candidate("fp32").tf32 is False
