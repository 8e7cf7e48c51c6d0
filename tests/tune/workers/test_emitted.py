"""The emitted file must do, bit for bit, what the measured plan did; a file that does something else is noticed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from amptune.apply import apply
from amptune.capture import Target, TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.plan import Plan, ScalerConfig, SitePlan
from amptune.patch.instrument import instrument_source
from amptune.patch.output import patched_files
from amptune.tune.outputs.stockplan import plan_of_stock
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker
from tests.tune.conftest import MLP

CONVOLUTION = """
import torch
from torch import nn


def make_model():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 49, 4))


def make_batch():
    return torch.randn(2, 3, 9, 9), torch.randint(0, 4, (2,))


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output.float(), batch[1])
"""
BF16 = Plan(
    sites={
        "embed": SitePlan(Format.FP32),
        "norm": SitePlan(Format.BF16),
        "fc1": SitePlan(Format.BF16),
        "fc2": SitePlan(Format.BF16, pad=64),
        "#softmax.0": SitePlan(Format.FP32, how="source"),
    }
)
FP16 = Plan(
    sites={name: SitePlan(Format.FP16) for name in ("embed", "norm", "fc1", "fc2")},
    loss_format=None,
    scaler=ScalerConfig(enabled=True),
)
AUTOCAST = plan_of_stock(Candidate("autocast-bf16", autocast=Format.BF16), {})


class Bench:
    """A worker of this process on a model file with a lookup at its softmax."""

    def __init__(self, folder: Path, text: str = MLP) -> None:
        (folder / "sizes.txt").write_text("13")
        self.path = folder / "net.py"
        self.path.write_text(text)
        spec = TargetSpec(str(self.path))
        self.graph = capture(load_target(spec)).graph
        codes = {site.id: site.code for site in self.graph if not site.is_module}
        options = TuneOptions(spec, folder / "out", steps=2)
        source = instrument_source(text, set(codes.values()))
        self.worker = Worker(Job(options, source, codes, (), threads=1), lambda *_: None)

    def emit(self, plan: Plan, folder: Path) -> Path:
        folder.mkdir()
        for name, content in patched_files(self.path, plan, self.worker.patch_spec(self.graph)).items():
            (folder / name).write_bytes(content)
        return folder / "net_amptuned.py"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("plan", [BF16, FP16, AUTOCAST, Plan()], ids=["bf16", "fp16", "stock autocast", "empty"])
def test_the_emitted_file_equals_the_plan(bench: Bench, tmp_path: Path, plan: Plan) -> None:
    path = bench.emit(plan, tmp_path / "emitted")
    assert bench.worker.check_emitted(path, plan_candidate(plan)) == []


def test_a_file_that_does_something_else_is_noticed(bench: Bench, tmp_path: Path) -> None:
    path = bench.emit(BF16, tmp_path / "emitted")
    text = path.read_text()
    path.write_text(text.replace('"norm": "bf16"', '"norm": "fp32"'))
    assert path.read_text() != text
    assert bench.worker.check_emitted(path, plan_candidate(BF16)) != []


def test_a_file_that_reads_what_lies_beside_it_is_compared(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    bench = Bench(home, "import pathlib\n(pathlib.Path(__file__).parent / 'sizes.txt').read_text()\n" + MLP)
    path = bench.emit(BF16, tmp_path / "emitted")
    assert bench.worker.check_emitted(path, plan_candidate(BF16)) == []


def test_another_state_dict_is_noticed(bench: Bench, tmp_path: Path) -> None:
    path = bench.emit(BF16, tmp_path / "emitted")
    path.write_text(path.read_text().replace("nn.Linear(32, 13)", "nn.Linear(32, 14)"))
    differences = bench.worker.check_emitted(path, plan_candidate(BF16))
    assert any("fc2.weight" in difference for difference in differences)


def test_what_ran_is_compared_with_the_plan_in_each_trial(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = bench.worker.trial(plan_candidate(BF16), None)
    assert measured.mismatches == ()
    assert measured.step is not None
    # A published tuner measured the previous sample for months: here the plan is not put in force at all.
    nothing = apply(bench.worker.bench.model, Plan())
    monkeypatch.setattr("amptune.tune.running.training.apply", lambda *_, **__: nothing)
    wrong = bench.worker.trial(plan_candidate(BF16), None)
    assert any("fc1" in mismatch for mismatch in wrong.mismatches)
    assert wrong.step is None


def test_a_layer_in_another_memory_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(CONVOLUTION)
    spec = TargetSpec(str(path))
    graph = capture(load_target(spec)).graph
    worker = Worker(Job(TuneOptions(spec, tmp_path / "out", steps=2), None, {}, (), threads=1), lambda *_: None)
    plan = Plan(sites={"0": SitePlan(Format.BF16), "2": SitePlan(Format.BF16)}, channels_last=True)
    for name, content in patched_files(path, plan, worker.patch_spec(graph)).items():
        (tmp_path / name).write_bytes(content)
    emitted = tmp_path / "net_amptuned.py"
    assert worker.check_emitted(emitted, plan_candidate(plan)) == []
    text = emitted.read_text()
    emitted.write_text(text.replace("channels_last=True", "channels_last=False"))
    (difference,) = worker.check_emitted(emitted, plan_candidate(plan))
    made = "0: float32[2, 3, 9, 9] -> bfloat16[2, 8, 7, 7]"
    assert difference == f"{made}, in the plan {made[3:]} in channels_last"


def test_lazy_layers_have_the_plan_once_they_have_their_parameters(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(CONVOLUTION.replace("nn.Linear(8 * 49, 4)", "nn.LazyLinear(4)"))
    spec = TargetSpec(str(path))
    graph = capture(load_target(spec)).graph
    worker = Worker(Job(TuneOptions(spec, tmp_path / "out", steps=2), None, {}, (), threads=1), lambda *_: None)
    plan = Plan(sites={"0": SitePlan(Format.BF16), "2": SitePlan(Format.BF16)})
    for name, content in patched_files(path, plan, worker.patch_spec(graph)).items():
        (tmp_path / name).write_bytes(content)
    emitted = tmp_path / "net_amptuned.py"
    assert worker.check_emitted(emitted, plan_candidate(plan)) == []
    emitted.write_text(emitted.read_text().replace('"bf16"', '"fp16"'))
    assert worker.check_emitted(emitted, plan_candidate(plan)) != []


@pytest.mark.parametrize(("factor", "agrees"), [("1", True), ("1.001", False)])
def test_kernels_that_do_not_repeat_themselves_are_allowed_for(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: str, agrees: bool
) -> None:
    path = bench.emit(Plan(), tmp_path / "emitted")
    path.write_text(f"{path.read_text()}\n_forward = Net.forward\nNet.forward = lambda *a: _forward(*a) * {factor}\n")
    call, noise = Target.call, itertools.cycle([3e-6, -2e-6, 1e-6])
    monkeypatch.setattr(Target, "call", lambda *arguments: call(*arguments) * (1 + next(noise)))
    assert (bench.worker.check_emitted(path, plan_candidate(Plan())) == []) == agrees


def test_nan_is_not_the_zero_that_the_plan_gave(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.emit(Plan(), tmp_path / "emitted")
    wrong = "lambda *a: _forward(*a).masked_fill(torch.arange(13) == 3, float('nan'))"
    path.write_text(f"{path.read_text()}\n_forward = Net.forward\nNet.forward = {wrong}\n")
    call, is_other = Target.call, torch.arange(13) != 3
    monkeypatch.setattr(Target, "call", lambda *arguments: call(*arguments) * is_other)
    (difference,) = bench.worker.check_emitted(path, plan_candidate(Plan()))
    assert difference.startswith("the output is off by nan of its size")


KEPT = """def loss_fn(output, batch):
    SCALED.append(output.detach().abs().mean())
    return CRITERION(torch.zeros(1, 3)).exp() * sum(SCALED) * """


def test_what_a_file_keeps_beside_its_model_is_as_new_as_in_the_emitted_file(tmp_path: Path) -> None:
    """A criterion with random weights, and a list that each loss adds to."""
    source = MLP.replace("def loss_fn(output, batch):\n    return ", KEPT)
    assert source != MLP
    bench = Bench(
        tmp_path, source.replace("def make_model", "CRITERION, SCALED = nn.Linear(3, 1), []\n\n\ndef make_model")
    )
    assert bench.worker.prepare().initial_loss
    path = bench.emit(BF16, tmp_path / "emitted")
    assert bench.worker.check_emitted(path, plan_candidate(BF16)) == []
    path.write_text(path.read_text().replace('"norm": "bf16"', '"norm": "fp32"'))
    assert bench.worker.check_emitted(path, plan_candidate(BF16)) != []


def test_a_part_in_torchscript_is_compared_by_what_comes_of_it(tmp_path: Path) -> None:
    traced = "torch.jit.trace(nn.Linear(32, 13), torch.zeros(1, 32))"
    bench = Bench(tmp_path, MLP.replace("nn.Linear(32, 13)", traced))
    plan = Plan(sites={"norm": SitePlan(Format.BF16), "fc1": SitePlan(Format.FP32)})
    path = bench.emit(plan, tmp_path / "emitted")
    assert bench.worker.check_emitted(path, plan_candidate(plan)) == []


@pytest.mark.parametrize("writes", [False, True])
def test_a_model_that_writes_into_its_batch_is_told_of(tmp_path: Path, writes: bool) -> None:
    before = "        x = self.norm("
    bench = Bench(tmp_path, MLP.replace(before, f"        ids.clamp_(0, 12)\n{before}") if writes else MLP)
    notes = bench.worker.prepare().notes
    assert any("writes into the batch" in note for note in notes) is writes
