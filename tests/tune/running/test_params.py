"""``--params bf16``: what these recipes train, what they leave behind, and what the user takes home."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.plan import PARAMS, Plan
from amptune.errors import UsageError
from amptune.patch.output import patched_files
from amptune.runtime import masters_of
from amptune.tune import run
from amptune.tune.finalists.finals import Verdict
from amptune.tune.outputs.stockplan import parameters_note, plan_of_stock
from amptune.tune.quality.quality import judge
from amptune.tune.quality.reference import measure_reference
from amptune.tune.running.device import Device
from amptune.tune.running.lowparams import check_params
from amptune.tune.running.recipes import Candidate, params_candidate, plan_candidate, stock_candidates
from amptune.tune.running.state import tensors_of
from amptune.tune.running.timing import StepTime
from amptune.tune.running.training import Workbench, training
from amptune.tune.search import Search
from amptune.tune.workers.job import Job
from amptune.tune.workers.options import TuneOptions
from amptune.tune.workers.worker import Worker
from tests.inprocess import amptune
from tests.tune.conftest import MLP, Make, copied

SMALL_STEPS = MLP.replace("torch.optim.AdamW(params, lr=3e-3, fused=True)", "torch.optim.SGD(params, lr=1e-6)")
"""Steps that bfloat16 cannot see."""
BUFFERS = MLP.replace(
    "        self.fc2 = nn.Linear(32, 13)\n",
    "        self.fc2 = nn.Linear(32, 13)\n        self.register_buffer('kept', torch.full((13,), 1.001))\n"
    "        self.register_buffer('constant', torch.full((13,), 1.001), persistent=False)\n",
).replace("return self.fc2(weights + F.relu(self.fc1(x)))",
          "return self.fc2(weights + F.relu(self.fc1(x))) * self.kept * self.constant")  # fmt: skip
TIED_RNN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.rnn(self.embed(ids))[0])


def make_model():
    return Net()


def make_batch():
    ids = torch.arange(32).reshape(4, 8) % 12
    return ids, ids


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output.flatten(0, 1), batch[1].flatten())
"""


def recipe(params: str) -> Candidate:
    return params_candidate(params)


def identities(bench: Workbench) -> dict[str, tuple[int, torch.dtype]]:
    return {name: (id(value), value.dtype) for name, value in bench.model.state_dict(keep_vars=True).items()}


def test_the_recipes_are_there_only_when_asked_for() -> None:
    names = [candidate.name for candidate in stock_candidates(Device("cpu"), nn.Linear(16, 16), "bf16")]
    assert names[-2:] == ["params-bf16", "params-bf16-master"]
    assert [candidate.name for candidate in stock_candidates(Device("cpu"), nn.Linear(16, 16))] == names[:-2]


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("source", [BUFFERS, TIED_RNN], ids=["buffers", "tied and rnn"])
def test_the_model_is_lowered_while_the_run_lasts_and_given_back(make_bench: Make, source: str, params: str) -> None:
    bench, batches = make_bench(source, steps=3)
    before, initial = identities(bench), copied(bench.model)
    constants = {name: value.clone() for name, value in bench.model.named_buffers()}
    with training(bench, recipe(params)) as trained:
        trained.step(batches.train[0])
        assert {p.dtype for p in bench.model.parameters()} == {torch.bfloat16}
        state = [value for values in trained.optimizer.state.values() for value in values.values() if value.numel() > 1]
        assert {value.dtype for value in state} == {torch.float32 if params == "bf16-master" else torch.bfloat16}
    assert identities(bench) == before
    assert all(torch.equal(value, constants[name]) for name, value in bench.model.named_buffers() if name == "constant")
    assert not bench.model._forward_pre_hooks
    bench.restore()
    assert all(torch.equal(value, initial[name]) for name, value in tensors_of(bench.model).items())


@pytest.mark.parametrize("params", PARAMS)
def test_other_candidates_do_not_notice(make_bench: Make, params: str) -> None:
    bench, batches = make_bench(BUFFERS, steps=3)

    def losses() -> list[float]:
        with training(bench, Candidate("fp32")) as trained:
            return [trained.step(batch).item() for batch in batches.train]

    before = losses()
    with training(bench, recipe(params)) as trained:
        for batch in batches.train:
            trained.step(batch)
    assert losses() == before


def test_steps_that_bf16_loses_are_in_the_masters_and_evaluated_there(make_bench: Make) -> None:
    bench, batches = make_bench(SMALL_STEPS, steps=3)

    def weight_after(params: str) -> torch.Tensor:
        with training(bench, recipe(params)) as trained:
            for batch in batches.train:
                trained.step(batch)
            masters = {id(parameter): value.clone() for parameter, value in masters_of(trained.optimizer)}
            weight = bench.model.fc1.weight
            expected = masters.get(id(weight), weight.detach().float())
        assert torch.equal(bench.model.fc1.weight.detach(), expected), "what is evaluated"
        return expected

    rounded = bench.initial["fc1.weight"].bfloat16().float()
    assert torch.equal(weight_after("bf16"), rounded)
    found = weight_after("bf16-master")
    assert not torch.equal(found, rounded)
    assert torch.equal(found.bfloat16().float(), rounded)


def test_they_are_judged_like_the_others(make_bench: Make) -> None:
    """And a layer whose weights differ by less than BF16 rounds does not pass."""
    bench, batches = make_bench()
    reference = measure_reference(bench, batches, 0.005, 0)
    for params in PARAMS:
        quality = judge(bench, recipe(params), batches, reference, seed=0)
        assert quality.valid, quality.reason
        assert quality.loss_gap != 0
    fine = MLP.replace(
        "x = self.norm(self.embed(ids))", "x = self.norm(self.embed(ids)) * (self.fine - 1) * 1e3"
    ).replace(
        "        self.fc2 = nn.Linear(32, 13)\n",
        "        self.fc2 = nn.Linear(32, 13)\n        self.fine = nn.Parameter(1 + 1e-3 * torch.randn(16))\n",
    )
    bench, batches = make_bench(fine)
    reference = measure_reference(bench, batches, 0.005, 0)
    assert not judge(bench, recipe("bf16"), batches, reference, seed=0).valid


def test_a_device_without_bf16_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "formats", lambda self: (Format.FP16,))
    check_params(None, Device("cpu"))
    with pytest.raises(UsageError, match="does not compute in BF16"):
        check_params("bf16", Device("cpu"))


def emitted(folder: Path, source: str, plan: Plan) -> Path:
    """The patched file, as tune writes it, and checked as tune checks it."""
    path = folder / "net.py"
    path.write_text(source)
    spec = TargetSpec(str(path))
    options = TuneOptions(spec, folder, steps=3)
    worker = Worker(Job(options, None, {}, (), 1), lambda *_: None)
    graph = capture(load_target(spec)).graph
    for name, content in patched_files(path, plan, worker.patch_spec(graph)).items():
        (folder / name).write_bytes(content)
    patched = folder / "net_amptuned.py"
    assert worker.check_emitted(patched, plan_candidate(plan)) == []
    assert worker.check_emitted(patched, plan_candidate(dataclasses.replace(plan, params=None))) != []
    return patched


@pytest.mark.parametrize("params", PARAMS)
def test_the_emitted_file_does_it_without_amptune(tmp_path: Path, params: str) -> None:
    emitted(tmp_path, MLP, plan_of_stock(recipe(params), {}))
    code = """
import sys
sys.modules.update({"amptune": None, "libcst": None, "optuna": None})
import torch, net_amptuned as net
from amptune_runtime import masters_of
torch.manual_seed(0)
model = net.make_model()
assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
optimizer = net.make_optimizer(model.parameters())
batches, losses = net.train_batches(), []
for _ in range(30):
    batch = next(batches)
    optimizer.zero_grad()
    loss = net.loss_fn(model(batch[0]), batch)
    assert loss.dtype == torch.float32
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0] - 0.3, losses
print(len(masters_of(optimizer)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    number = len(list(nn.Module.parameters(load_target(TargetSpec(str(tmp_path / "net.py"))).make_model())))
    assert result.stdout == f"{number if params == 'bf16-master' else 0}\n", result.stderr


def test_what_is_left_to_the_user_is_said() -> None:
    master = plan_of_stock(recipe("bf16-master"), {})
    assert "optimizer = master_weights(optimizer)" in str(parameters_note(master, makes_optimizer=False))
    assert "make_optimizer returns" in str(parameters_note(master, makes_optimizer=True))
    assert "state_dict" in str(parameters_note(plan_of_stock(recipe("bf16"), {}), makes_optimizer=True))
    assert parameters_note(Plan(), makes_optimizer=True) is None


def test_tune_lists_them_and_a_study_is_not_resumed_without(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    fast = ("tune", "net.py", "--steps", "3", "--device", "cpu", "--budget", "5")
    result = amptune(tmp_path, *fast, "--params", "bf16", "--format", "json")
    assert result.returncode == 0, result.stderr
    stock = [entry["recipe"] for entry in json.loads(result.stdout)["stock"]]
    assert stock == ["fp32", "autocast-bf16", "autocast-fp16", "params-bf16", "params-bf16-master"]
    result = amptune(tmp_path, *fast, "--resume")
    assert result.returncode == 2
    assert "cannot be continued: params then bf16, now None" in result.stderr


def test_what_wins_is_written_and_what_is_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def masters_win(search: Search) -> Verdict:
        record = next(r for r in search.records() if r.outcome.recipe == "params-bf16-master")
        step = StepTime.of([1.0])  # on a busy machine its trial may have been given up
        return Verdict("stock", record, step, record, step, repeated=False)

    monkeypatch.setattr(run, "decide", masters_win)
    (tmp_path / "net.py").write_text(MLP)
    result = amptune(tmp_path, "tune", "net.py", "--steps", "3", "--device", "cpu", "--budget", "5", "--params", "bf16")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "amptune-out/net"
    assert json.loads((out / "plan.json").read_text())["params"] == "bf16-master"
    assert '@masters_in("fp32")' in (out / "net_amptuned.py").read_text()
    assert "make_optimizer returns an optimizer with FP32 copies" in result.stdout
    assert "make_optimizer returns an optimizer with FP32 copies" in (out / "report.html").read_text()


def test_bench_has_a_row_of_each(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MLP)
    fast = ("bench", "net.py", "--steps", "3", "--device", "cpu", "--rounds", "1", "--format", "json")
    result = amptune(tmp_path, *fast, "--params", "bf16")
    rows = {row["recipe"]: row for row in json.loads(result.stdout)["rows"]}
    assert {"params-bf16", "params-bf16-master"} <= rows.keys()
    assert all(rows[f"params-{name}"]["step_ms"] and rows[f"params-{name}"]["kind"] == "stock" for name in PARAMS)


@pytest.mark.parametrize("command", ["tune", "bench"])
def test_an_unknown_value_is_one_message(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = amptune(tmp_path, command, "net.py", "--params", "fp16")
    assert result.returncode == 2
    assert "--params" in result.stderr
    assert "bf16" in result.stderr
