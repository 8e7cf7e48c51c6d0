"""Models that make their loss themselves, by a ``loss_function`` that they keep or a cross entropy that they call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amptune.apply.handoff import patch_spec
from amptune.capture import TargetSpec, capture, load_target
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.runtime import keep_loss
from amptune.tune.choices.space import COMPILED_LOSS
from amptune.tune.prices.losses import PLAIN_LOSS
from amptune.tune.prices.modelloss import ModelLoss
from amptune.tune.running.compilation import Compilation
from amptune.tune.running.recipes import Candidate, plan_candidate
from amptune.tune.running.training import still, training
from tests.tune.conftest import MLP, Make

KEEPS = """
import torch
from torch import nn


def loss_of(logits, labels):
    return nn.functional.cross_entropy(logits.float(), labels)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 5)

    @property
    def loss_function(self):
        return self.__dict__.get("_loss_function", loss_of)

    @loss_function.setter
    def loss_function(self, value):
        self._loss_function = value

    def forward(self, x, labels):
        return self.loss_function(logits=self.head(x), labels=labels)


def make_model():
    return Net()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(6, 8, generator=generator), "labels": torch.randint(5, (6,), generator=generator)}
"""
PARTS = KEEPS.replace(
    "return self.loss_function(logits=self.head(x), labels=labels)",
    "return self.loss_function(logits=self.head(x), labels=labels)[0]",
).replace("return nn.functional.cross_entropy(logits.float(), labels)",
          "return nn.functional.cross_entropy(logits.float(), labels), {}")  # fmt: skip
IN_FORWARD = "nn.functional.cross_entropy(logits, labels) + 0.1 * nn.CrossEntropyLoss()(logits, labels)"
CALLS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 5)
        self.drop = nn.Dropout(0.1)

    def forward(self, x, labels):
        logits = self.drop(self.head(x))
        return logits, LOSS


def make_model():
    return Net()


def make_batch():
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(6, 8, generator=generator), "labels": torch.randint(5, (6,), generator=generator)}


def loss_fn(output, batch):
    return output[1]
""".replace("LOSS", IN_FORWARD)
CALLS_AND_KEEPS = KEEPS.replace(
    "self.loss_function(logits=self.head(x), labels=labels)", "nn.CrossEntropyLoss()(self.head(x), labels)"
)
OUTSIDE = CALLS.replace(f"return logits, {IN_FORWARD}", "return logits").replace(
    "return output[1]", "return nn.functional.cross_entropy(output, batch['labels'])"
)
BY_HAND = KEEPS.replace("self.loss_function(logits=self.head(x), labels=labels)", "self.head(x).logsumexp(1).mean()")


def test_it_is_found_by_running_the_model(make_bench: Make) -> None:
    bench, batches = make_bench(KEEPS)
    assert ModelLoss(bench, batches.train[0]).is_made
    assert not vars(bench.model).keys() & {"_loss_function", "_amptune_loss"}
    bench.takes_gradients = True
    assert not ModelLoss(bench, batches.train[0]).is_made
    for source in (BY_HAND, OUTSIDE, PARTS, MLP):
        bench, batches = make_bench(source)
        assert not ModelLoss(bench, batches.train[0]).is_made
        assert ModelLoss(bench, batches.train[0]).measure(("fp32",), Format.BF16) == {}


def test_one_forward_finds_and_times_it(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, batches = make_bench(CALLS)
    forwards: list[Any] = []
    monkeypatch.setattr(type(bench.model), "forward", _counted(type(bench.model).forward, forwards))
    loss = ModelLoss(bench, batches.train[0])
    assert loss.is_made
    assert loss.measure(("fp32",), Format.BF16)
    assert loss.is_made
    assert len(forwards) == 1
    loss.forget()
    assert loss.measure(("fp32",), Format.BF16).keys() == {"fp32", PLAIN_LOSS}, "what was let go is made again"
    assert len(forwards) == 2


def _counted(forward: Any, calls: list[Any]) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return forward(*args, **kwargs)

    return run


def test_both_ways_are_timed(make_bench: Make) -> None:
    bench, batches = make_bench(KEEPS)
    found = ModelLoss(bench, batches.train[0]).measure(("fp32", COMPILED_LOSS), Format.BF16, backend="aot_eager")
    assert found.keys() == {"fp32", COMPILED_LOSS, PLAIN_LOSS}
    assert all(milliseconds > 0 for milliseconds in found.values())
    assert bench.model.loss_function is not None
    assert type(bench.model).__mro__[1] is torch.nn.Module


@pytest.mark.parametrize("source", [CALLS, CALLS_AND_KEEPS], ids=["calls", "keeps a loss that it does not use"])
def test_a_cross_entropy_that_the_forward_calls_is_found_and_timed(make_bench: Make, source: str) -> None:
    called = torch.nn.functional.cross_entropy
    bench, batches = make_bench(source)
    assert ModelLoss(bench, batches.train[0]).is_made
    found = ModelLoss(bench, batches.train[0]).measure(("fp32", COMPILED_LOSS), Format.BF16, backend="aot_eager")
    assert found.keys() == {"fp32", COMPILED_LOSS, PLAIN_LOSS}
    assert torch.nn.functional.cross_entropy is called


def test_recipes_and_plans_that_say_so_have_it_compiled_in_the_forward(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench(CALLS)
    called, output = torch.nn.functional.cross_entropy, bench.target.call(bench.model, batches.train[0])
    seen: list[bool] = []

    def forward(*_: Any) -> Any:
        seen.append(torch.nn.functional.cross_entropy is not called)
        return output

    monkeypatch.setattr(type(bench.target), "call", forward)
    plan = Plan({"head": SitePlan(Format.BF16)}, loss_compile=True, backend="aot_eager")
    compiled = Compilation("aot_eager", "blocks")
    for candidate, compilation, expected in (
        (Candidate("fp32"), None, False),
        (Candidate("fp32", loss_compile=True), None, True),
        (plan_candidate(plan), None, True),
        (plan_candidate(Plan({"head": SitePlan(Format.BF16)})), None, False),
        (Candidate("fp32"), compiled, True),
        (plan_candidate(plan), Compilation("aot_eager", "whole"), False),  # it is in the model's graph
    ):
        bench.compilation = compilation
        with training(bench, candidate) as run:
            run.loss(batches.train[0])
            assert seen.pop() is expected, (candidate, compilation)
            assert torch.nn.functional.cross_entropy is called, "a loss_fn is compiled by itself"


def test_it_is_compiled_beside_dropout_that_is_off(make_bench: Make) -> None:
    bench, batches = make_bench(CALLS)
    plan = Plan({"head": SitePlan(Format.BF16)}, loss_compile=True)
    with training(bench, plan_candidate(plan)) as run, still(bench):
        assert run.step(batches.train[0]).dtype == torch.float32


def test_a_compiler_that_fails_leaves_the_choice_out(make_bench: Make) -> None:
    bench, batches = make_bench(KEEPS)
    found = ModelLoss(bench, batches.train[0]).measure(("fp32", COMPILED_LOSS), Format.BF16, backend="no_such_backend")
    assert found.keys() == {"fp32", PLAIN_LOSS}


def test_recipes_and_plans_that_say_so_have_it_compiled_and_so_have_compiled_blocks(make_bench: Make) -> None:
    bench, _ = make_bench(KEEPS)
    (model,) = keep_loss(bench.model)
    plan = Plan({"head": SitePlan(Format.BF16)}, loss_compile=True, backend="aot_eager")
    compiled = Compilation("aot_eager", "blocks")
    for candidate, compilation, expected in (
        (Candidate("fp32"), None, False),
        (Candidate("fp32", loss_compile=True), None, True),
        (plan_candidate(plan), None, True),
        (plan_candidate(Plan({"head": SitePlan(Format.BF16)})), None, False),
        (Candidate("fp32"), compiled, True),
        (plan_candidate(plan), Compilation("aot_eager", "whole"), True),
        (Candidate("fp32"), Compilation("aot_eager", "whole"), False),
    ):
        bench.compilation = compilation
        with training(bench, candidate):
            assert ("_amptune_loss" in vars(model)) is expected, (candidate, compilation)
        assert "_amptune_loss" not in vars(model)
        assert type(model).__mro__[1] is torch.nn.Module


@pytest.mark.parametrize(
    ("loss_fn", "is_made"),
    [("output", True), ("2 * output", True), ("nn.functional.mse_loss(batch['x'], batch['x'] + output)", False)],
    ids=["handed on", "scaled", "another"],
)
def test_a_loss_that_the_model_keeps_and_makes_by_hand_is_the_models(
    loss_fn: str, is_made: bool, tmp_path: Path
) -> None:
    by_hand = "(nn.functional.softplus(logits) - logits * (labels == 0)[:, None]).mean()"
    source = KEEPS.replace("nn.functional.cross_entropy(logits.float(), labels)", by_hand)
    path = tmp_path / "model.py"
    path.write_text(f"{source}\n\ndef loss_fn(output, batch):\n    return {loss_fn}\n")
    target = load_target(TargetSpec(str(path)))
    assert patch_spec(target, target.make_model(), capture(target).graph).makes_loss is is_made
