"""Models whose own code compiles something: they are looked at as they are written, and compiled for each trial."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from amptune.apply.patching import apply_plan_file
from amptune.capture import TargetSpec, capture, load_target
from amptune.capture.target import PARTS_COMPILED
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.tune.outputs.emit import plan_text
from amptune.tune.quality.quality import judge
from amptune.tune.run import job_of
from amptune.tune.running.compilation import forget_compiled
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.recompiling import num_compiled
from amptune.tune.running.training import training
from amptune.tune.workers.emitted import compare_emitted
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker
from tests.tune.conftest import MLP, Make

DECORATED = MLP.replace("    def forward", '    @torch.compile(backend="aot_eager")\n    def forward')
PARTS = MLP.replace(
    "    return Net()",
    """    net = Net()
    net.fc1 = torch.compile(net.fc1, backend="aot_eager")
    net.fc2.compile(backend="aot_eager")
    return net""",
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    forget_compiled()
    yield
    forget_compiled()


def make_worker(folder: Path, source: str, compile_with: str | None = None) -> tuple[Worker, TuneOptions]:
    path = folder / "net.py"
    path.write_text(source)
    spec = TargetSpec(str(path))
    target = load_target(spec)
    options = TuneOptions(spec, folder / "out", steps=2, compile_with=compile_with)
    worker = Worker(job_of(options, target, captured := capture(target)), lambda *_: None)
    worker.graph = captured.graph  # type: ignore[attr-defined]
    return worker, options


@pytest.mark.parametrize("source", [DECORATED, PARTS])
def test_every_site_is_looked_at_though_the_model_was_compiled_before(tmp_path: Path, source: str) -> None:
    """A hook that comes later is not heard by compiled code: formats that overflow would pass."""
    worker, _ = make_worker(tmp_path, source)
    with training(worker.bench, Candidate("fp32")) as run:
        run.step(worker.batches.train[0])
    graph = worker.graph  # type: ignore[attr-defined]
    space = worker.space(graph)
    assert set(worker.sensitivity(space).sites) == {"embed", "norm", "fc1", "fc2"}
    assert set(worker.costs(space, graph).sites) == {"embed", "norm", "fc1", "fc2"}


def test_what_the_users_code_compiles_is_compiled_for_each_trial(tmp_path: Path) -> None:
    """Kept from trial to trial, torch would run the code of the ninth plan in eager mode, without a word."""
    worker, _ = make_worker(tmp_path, DECORATED)
    worker.trial(Candidate("fp32"), None)
    for pad in range(1, 11):
        before = num_compiled()
        plan = Plan({"fc1": SitePlan(Format.BF16, pad=8 * pad), "fc2": SitePlan(Format.BF16)})
        assert worker.trial(plan_candidate(plan), None).step is not None
        assert num_compiled() > before


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by torch's own tracing
def test_what_a_trial_compiles_in_compile_mode_is_not_the_users_own(tmp_path: Path) -> None:
    """After the first trial all losses were judged as they are written, and gradients found ahead were found again."""
    worker, _ = make_worker(tmp_path, MLP, compile_with="aot_eager")
    plan = Plan({"fc1": SitePlan(Format.BF16), "fc2": SitePlan(Format.BF16)})
    before = num_compiled()
    assert worker.trial(plan_candidate(plan), None).step is not None
    assert num_compiled() > before
    assert not worker.bench.compiles_itself


@pytest.mark.parametrize("source", [MLP, DECORATED])
def test_a_loss_is_judged_as_compiled_as_it_ships_where_dropout_is_off(tmp_path: Path, source: str) -> None:
    """Only a model whose own code is compiled is judged as written: its compiled dropout cannot be switched off."""
    dropping = source.replace("self.fc2(weights", "self.fc2(F.dropout(weights, 0.1, self.training)")
    worker, _ = make_worker(tmp_path, dropping)
    worker.prepare()
    assert worker.bench.compiles_itself is (source == DECORATED)
    assert worker.bench.has_dropout
    plan = plan_candidate(Plan({name: SitePlan(Format.BF16) for name in ("fc1", "fc2")}, loss_compile=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("amptune.tune.running.training.BACKEND", "aot_eager")
        before = num_compiled()
        assert judge(worker.bench, plan, worker.batches, worker.reference, seed=0).gate is not None
    assert (num_compiled() > before) is (source == MLP)


def test_parts_are_taken_out_of_their_compilation(make_bench: Make) -> None:
    bench, _ = make_bench(PARTS)
    assert bench.target.notes == [PARTS_COMPILED]
    assert list(dict(bench.model.named_modules())) == ["", "embed", "norm", "fc1", "fc2"]
    before = num_compiled()
    bench.target.call(bench.model, bench.target.make_batch())
    assert num_compiled() == before


@pytest.mark.parametrize("within", [True, False])
def test_a_patched_model_with_compiled_parts_does_what_the_plan_does(tmp_path: Path, within: bool) -> None:
    """Parts that are compiled when the plan comes into force, and parts that are compiled afterwards."""
    wrapped = "        self.fc1 = torch.compile(self.fc1, backend='aot_eager')\n        self.fc2 ="
    source = MLP.replace("        self.fc2 =", wrapped) if within else PARTS
    worker, options = make_worker(tmp_path, source)
    candidate = plan_candidate(Plan({"fc1": SitePlan(Format.BF16), "fc2": SitePlan(Format.BF16)}, loss_format=None))
    emitted = tmp_path / "net_amptuned.py"
    apply = "apply_plan(self, {'fc1': 'bf16', 'fc2': 'bf16'})"
    at = "        self.fc2 = nn.Linear(32, 13)\n"
    emitted.write_text(source.replace(at, f"{at}        from amptune.runtime import apply_plan\n        {apply}\n"))
    assert compare_emitted(worker.bench, emitted, candidate, worker.batches.train[0], options.seed) == []


def test_a_plan_is_applied_to_a_model_with_compiled_parts(tmp_path: Path) -> None:
    parts = "nn.Sequential(nn.Linear(16, 16), nn.ReLU()), backend='aot_eager')"
    source = MLP.replace("        self.fc2 =", f"        self.mix = torch.compile({parts}\n        self.fc2 =")
    (tmp_path / "net.py").write_text(source.replace("self.norm(self.embed(ids))", "self.mix(self.embed(ids)).float()"))
    (tmp_path / "plan.json").write_text(plan_text(Plan({"mix.0": SitePlan(Format.BF16)})))
    apply_plan_file(tmp_path / "plan.json", TargetSpec(str(tmp_path / "net.py")), tmp_path / "out")
    target = load_target(TargetSpec(str(tmp_path / "out/net_amptuned.py")))
    model = target.make_model()
    assert model.mix[0](torch.ones(2, 16)).dtype == torch.bfloat16  # type: ignore[index,operator]


def test_nothing_is_imported_to_know_that_nothing_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    assert num_compiled() == 0
    assert "torch._dynamo" not in sys.modules
