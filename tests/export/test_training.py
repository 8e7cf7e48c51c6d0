"""The training loop of the pytorch target: calls in the right order, the plan in force, as accurate as FP32."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from amptune import runtime
from amptune.apply.realised import check_realised
from amptune.capture import TargetSpec, load_target
from amptune.cli import run
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.core.scaler import choose_scaler
from amptune.tune.quality.gradients import record_gradients
from amptune.tune.running.batches import load_batches
from amptune.tune.running.device import Device
from amptune.tune.running.training import Workbench

from . import plans
from .conftest import Importer, export, with_patched

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS = ("stem.conv", "stem.norm", "block1.conv", "block1.norm", "block2.conv", "block2.norm", "head")
MOST_LOST = 0.5
"""Points of accuracy."""


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Of the tests here, all."""


@pytest.fixture(autouse=True)
def same_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy beside the patched file is our own runtime, so that what is in force can be looked at."""
    monkeypatch.setitem(sys.modules, "amptune_runtime", runtime)


def trainer_of(folder: Path, name: str, importer: Importer) -> ModuleType:
    with_patched(folder, name)
    return importer(export(folder, name, "pytorch", "train.py"))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_unscale_clip_step_update_once_for_each_step(accumulate, tmp_path, importer, monkeypatch):
    train = trainer_of(tmp_path, "mixed", importer)
    model = train.make_model()
    optimizer = train.make_optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    order: list[str] = []

    def noting(owner: Any, method: str) -> None:
        original = getattr(owner, method)

        @functools.wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            order.append(method)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, noted)

    for method in ("scale", "unscale_", "step", "update"):
        noting(scaler, method)
    noting(torch.nn.utils, "clip_grad_norm_")
    before = model.head.weight.detach().clone()
    train.train(model, optimizer, scaler, train.batches(), steps=2, accumulate=accumulate)
    assert order == [*["scale"] * accumulate, "unscale_", "clip_grad_norm_", "step", "update"] * 2
    assert not torch.equal(before, model.head.weight)


@pytest.mark.parametrize("name", ["bf16", "mixed", "stock-bf16"])
def test_the_plan_is_in_force_in_the_loop(name, tmp_path, importer):
    train = trainer_of(tmp_path, name, importer)
    model = train.make_model()
    optimizer = train.make_optimizer(model.parameters())
    scaler = [torch.amp.GradScaler("cpu")] if plans.PLANS[name].scaler.enabled else []

    def one_step() -> None:
        train.train(model, optimizer, *scaler, train.batches(), steps=1)

    assert check_realised(model, one_step, plans.PLANS[name]) == []


def test_accumulation_is_one_large_batch(tmp_path, importer):
    train = trainer_of(tmp_path, "fp32", importer)
    batches = [next(train.batches()) for _ in range(1)] * 4
    whole, parts = train.make_model(), train.make_model()
    for model, accumulate, data in ((whole, 1, batches[:1]), (parts, 4, batches)):
        train.train(model, torch.optim.SGD(model.parameters(), lr=0.1), iter(data), steps=1, accumulate=accumulate)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_checkpoint_goes_on_where_it_was(tmp_path, importer):
    train = trainer_of(tmp_path, "fp16", importer)

    def fresh() -> tuple[Any, Any, Any]:
        model = train.make_model()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
        return model, train.make_optimizer(model.parameters()), scaler

    one = fresh()
    train.train(*one, train.batches(), steps=2)
    train.save(tmp_path / "state.pt", *one)
    other = fresh()
    train.load(tmp_path / "state.pt", *other)
    assert other[2].get_scale() == one[2].get_scale() == 2.0**9
    losses = [train.train(*state, train.batches(), steps=1) for state in (one, other)]
    assert losses[0] == losses[1]


def digits_plan(kind: str) -> Plan:
    """All layers in one format; or mixed: convolutions in BF16, norms in FP32, the head in FP16. Scaler as tuned."""
    low = {"bf16": Format.BF16, "fp16": Format.FP16, "fp32": Format.FP32}.get(kind)
    sites = {path: SitePlan(low or (Format.FP32 if "norm" in path else Format.BF16)) for path in DIGITS}
    if low is None:
        sites["head"] = SitePlan(Format.FP16)
    made = Plan(sites=sites, target="digits.py")
    if not made.uses_fp16:
        return made
    target, device = load_target(TargetSpec(str(EXAMPLES / "digits.py"))), Device("cpu")
    batches = load_batches(target, 10, device.torch)
    record = record_gradients(Workbench.build(target, device, seed=0), made, batches, seed=0)
    return dataclasses.replace(made, scaler=choose_scaler(record))


def accuracy(folder: Path, plan: Plan, batch_size: int) -> float:
    """Percent of held-back digits after the exported file ran as it is: 200 steps, with the scaler that it builds."""
    folder.mkdir()
    text = (EXAMPLES / "digits.py").read_text()
    (folder / "digits.py").write_text(text.replace("BATCH_SIZE = 128", f"BATCH_SIZE = {batch_size}"))
    plan_path = folder / "plan.json"
    plan_path.write_text(json.dumps(plan.to_json("t")))
    assert run(["apply", str(plan_path), str(folder / "digits.py"), "--out", str(folder)]) == 0
    assert run(["export", str(plan_path), "--to", "pytorch", "-o", str(folder / "train_digits.py")]) == 0
    printed = subprocess.run(
        [sys.executable, "train_digits.py"], cwd=folder, capture_output=True, text=True, check=False, timeout=3000,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert printed.returncode == 0, printed.stderr[-2000:]
    return float(printed.stdout.rsplit("evaluate: ", 1)[1])


@pytest.mark.full
@pytest.mark.parametrize(
    ("kinds", "batch_size"),
    # A CPU has no fast convolution in FP16: a step of 128 images takes 3.5 s there, a hundred times that of FP32.
    [(("bf16", "mixed"), 128), (("fp16",), 32)],
    ids=["bf16-mixed", "fp16"],
)
def test_digits_as_accurate_as_fp32_after_200_steps(kinds, batch_size, tmp_path):
    reference = accuracy(tmp_path / "fp32", digits_plan("fp32"), batch_size)
    assert reference > 90, "the reference must have learned something, or it says nothing"
    for kind in kinds:
        plan = digits_plan(kind)
        assert plan.scaler.enabled == (kind != "bf16")
        assert accuracy(tmp_path / kind, plan, batch_size) >= reference - MOST_LOST, kind


def test_a_mixed_plan_learns_as_fp32_does(tmp_path, importer, monkeypatch):
    """The short form of the test above, on the small model."""
    found = {}
    for name in ("fp32", "mixed"):
        (tmp_path / name).mkdir()
        train = trainer_of(tmp_path / name, name, importer)
        model = train.make_model()
        scaler = plans.PLANS[name].scaler
        scalers = [torch.amp.GradScaler("cpu", **scaler.to_json())] if scaler.enabled else []
        losses = train.train(model, train.make_optimizer(model.parameters()), *scalers, train.batches(), steps=80)
        assert len(losses) == 80
        found[name] = sum(losses[-20:]) / 20
        assert found[name] < losses[0] / 2, "it learns"
        for module in ("train", "net_amptuned"):
            monkeypatch.delitem(sys.modules, module)
    assert abs(found["mixed"] - found["fp32"]) < 0.1


KEYED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x, mask=None):
        return self.fc(x)


def make_model():
    return Net()


def make_batch():
    return {"x": torch.ones(4, 8), "labels": torch.zeros(4, dtype=torch.long)}


def loss_fn(output, batch):
    return nn.functional.cross_entropy(output, batch["labels"])
"""


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_batch_may_hold_more_than_forward_takes(wrapped: bool, tmp_path: Path, importer: Importer) -> None:
    """Targets beside the inputs in one dict: forward gets its own keys, the loss all of them."""
    (tmp_path / "net.py").write_text(KEYED)
    plan = Plan(sites={"fc": SitePlan(Format.BF16)}, target="net.py")
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json("amptune 0")))
    assert run(["apply", str(tmp_path / "plan.json"), str(tmp_path / "net.py"), "--out", str(tmp_path)]) == 0
    assert run(["export", str(tmp_path / "plan.json"), "--to", "pytorch", "-o", str(tmp_path / "train.py")]) == 0
    training = importer(tmp_path / "train.py")
    model = training.make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model = torch.compile(model, backend="eager") if wrapped else model
    losses = training.train(model, optimizer, training.batches(), steps=3)
    assert losses[-1] < losses[0]
