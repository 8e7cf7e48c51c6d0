"""The emitted file must do, bit for bit, what the measured plan did; a file that does something else is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from amptune.apply import apply
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.plan import Plan, ScalerConfig, SitePlan
from amptune.patch.instrument import instrument_source
from amptune.patch.output import patched_files
from amptune.tune.options import TuneOptions
from amptune.tune.recipes import Candidate, plan_candidate
from amptune.tune.stockplan import plan_of_stock
from amptune.tune.worker import Job, Worker

from .conftest import MLP

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

    def __init__(self, folder: Path) -> None:
        self.path = folder / "net.py"
        self.path.write_text(MLP)
        spec = TargetSpec(str(self.path))
        self.graph = capture(load_target(spec)).graph
        codes = {site.id: site.code for site in self.graph if not site.is_module}
        options = TuneOptions(spec, folder / "out", steps=2)
        source = instrument_source(MLP, set(codes.values()))
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
    monkeypatch.setattr("amptune.tune.training.apply", lambda *_, **__: nothing)
    wrong = bench.worker.trial(plan_candidate(BF16), None)
    assert any("fc1" in mismatch for mismatch in wrong.mismatches)
    assert wrong.step is None
