"""The judge must reject what trains wrong although its loss looks right, and accept plain 16-bit training."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from amptune.core.formats import Format
from amptune.core.plan import Plan, ScalerConfig, SitePlan
from amptune.errors import CaptureError, TuneError
from amptune.tune.quality import quality as judging
from amptune.tune.quality.gate import Bar, bars_of, compare_gradients, perturb
from amptune.tune.quality.quality import judge, misled
from amptune.tune.quality.reference import (
    NUM_ORDERS,
    Reference,
    broken_note,
    know_order,
    measure_reference,
    noise_note,
    shaken_noise,
    upper_bound,
)
from amptune.tune.quality.shaking import shaken
from amptune.tune.quality.trained import Gradients, gradients_at
from amptune.tune.running.recipes import Candidate, params_candidate, plan_candidate, with_scale
from amptune.tune.running.training import Workbench, training
from tests.tune.conftest import MLP, Make

BF16_EVERYWHERE = Plan(sites={name: SitePlan(Format.BF16) for name in ("embed", "norm", "fc1", "fc2")})


@contextmanager
def broken_forward(bench: Workbench, name: str, forward) -> Iterator[None]:  # type: ignore[no-untyped-def]
    module = bench.model.get_submodule(name)
    module.forward = forward.__get__(module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.forward


def test_bf16_plan_and_stock_autocast_are_valid(make_bench: Make) -> None:
    bench, batches = make_bench(steps=8)
    reference = measure_reference(bench, batches, tolerance=0.02, seed=0)
    for candidate in (plan_candidate(BF16_EVERYWHERE), Candidate("autocast-bf16", autocast=Format.BF16)):
        quality = judge(bench, candidate, batches, reference, seed=0)
        assert quality.valid, quality.reason
        assert quality.gate is not None
        assert quality.gate.worst_cosine > 0.98
        assert quality.skipped == 0


def test_fp32_candidate_has_no_gap_at_all(make_bench: Make) -> None:
    bench, batches = make_bench()
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    quality = judge(bench, Candidate("fp32"), batches, reference, seed=0)
    assert quality.loss_gap == 0.0
    assert 0 <= reference.noise < 1e-3


@pytest.mark.parametrize(
    ("candidate", "num_orders"),
    [(Candidate("autocast-bf16", autocast=Format.BF16), 1), (plan_candidate(BF16_EVERYWHERE), 3)],
    ids=["stock", "plan"],
)
def test_a_plan_takes_all_orders_where_the_reference_is_noisy_and_a_recipe_one(
    make_bench: Make, candidate: Candidate, num_orders: int
) -> None:
    bench, batches = make_bench(steps=8)
    reference = dataclasses.replace(measure_reference(bench, batches, tolerance=0.5, seed=0), noise=0.6)
    del reference.losses[1:], reference.waits[:]
    assert judge(bench, candidate, batches, reference, seed=0).valid
    assert len(reference.losses) == num_orders
    assert len(reference.waits) == num_orders - 1, "what the reference took is known apart from the candidate's time"


ONE_BATCH = MLP.replace("def train_batches", "def batches").replace("next(train_batches", "next(batches")


def test_orders_of_one_batch_that_repeat_each_other_are_not_trained_and_change_no_judgement(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench(ONE_BATCH, steps=8)
    assert batches.is_one

    def found() -> tuple[Reference, judging.Quality]:
        reference = measure_reference(bench, batches, tolerance=1e-9, seed=0)
        reference.waits.clear()
        quality = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
        return reference, quality

    short, quality = found()
    assert len(set(short.losses)) == 1
    monkeypatch.setattr(type(batches), "is_one", False)
    full, expected = found()
    assert quality.steps == 8
    assert expected.steps == 3 * 8
    assert short.noise == pytest.approx(full.noise)
    assert (quality.loss_gap, quality.upper, quality.threshold, quality.reason) == pytest.approx(
        (expected.loss_gap, expected.upper, expected.threshold, expected.reason)
    )
    assert len(short.waits) == len(full.waits) == NUM_ORDERS, "of shaken steps, which differ"


def test_one_batch_on_which_a_forward_draws_numbers_takes_all_orders(make_bench: Make) -> None:
    drawing = ONE_BATCH.replace("self.norm(self.embed(ids))", "self.norm(self.embed(ids) + torch.randn(16))")
    bench, batches = make_bench(drawing, steps=8)
    reference = measure_reference(bench, batches, tolerance=1e-9, seed=0)
    assert len(set(reference.losses)) == NUM_ORDERS
    quality = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
    assert quality.steps == 3 * 8


def test_a_layer_that_never_trains_is_rejected(make_bench: Make) -> None:
    bench, batches = make_bench()
    reference = measure_reference(bench, batches, tolerance=0.5, seed=0)

    def frozen(self, x):  # type: ignore[no-untyped-def]
        return torch.nn.functional.linear(x, self.weight.detach(), self.bias)

    with broken_forward(bench, "fc1", frozen):
        quality = judge(bench, Candidate("fp32"), batches, reference, seed=0)
    assert quality.upper < 0.5, "the loss alone must not be what gives it away here"
    assert not quality.valid
    assert "fc1.weight" in quality.reason


FROZEN_UNDER_AUTOCAST = MLP.replace(
    "F.relu(self.fc1(x))",
    "F.relu(F.linear(x, self.fc1.weight.detach() if torch.is_autocast_enabled('cpu') else self.fc1.weight))",
)


def test_the_parameters_are_named_whose_gradients_autocast_gets_wrong(make_bench: Make) -> None:
    for source, wrong in ((FROZEN_UNDER_AUTOCAST, ("fc1.weight",)), (MLP, ())):
        bench, batches = make_bench(source)
        reference = measure_reference(bench, batches, tolerance=0.5, seed=0)
        assert misled(bench, Candidate("autocast-bf16", autocast=Format.BF16), batches, reference, seed=0) == wrong


def test_a_stale_weight_cast_is_rejected(make_bench: Make) -> None:
    bench, batches = make_bench()
    reference = measure_reference(bench, batches, tolerance=10.0, seed=0)
    kept: dict[int, torch.Tensor] = {}

    def stale(self, x):  # type: ignore[no-untyped-def]
        weight = kept.setdefault(id(self), self.weight.detach().clone())
        return torch.nn.functional.linear(x, weight + (self.weight - self.weight.detach()), self.bias)

    with broken_forward(bench, "fc2", stale):
        quality = judge(bench, Candidate("fp32"), batches, reference, seed=0)
    assert not quality.valid
    assert "gradient" in quality.reason


MEMORISING = MLP.replace("lr=3e-3", "lr=5e-2")


def test_gradients_are_not_compared_where_a_batch_is_learnt_by_heart(make_bench: Make) -> None:
    """There a logit off by 0.3 changes the rest of the loss, and every gradient with it, by a third."""
    bench, batches = make_bench(MEMORISING, steps=60)
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    assert reference.losses[0] < 0.1 * reference.initial_loss, "the batch must be learnt for the test to say something"
    with training(bench, Candidate("fp32"), reference.state) as run:
        loss = run.loss(batches.train[0]).item()
    assert 0.05 * reference.initial_loss < loss < 0.5 * reference.initial_loss


def test_overflowing_losses_are_rejected(make_bench: Make) -> None:
    bench, batches = make_bench(MLP.replace("return self.fc2(", "return 3e6 * self.fc2("))
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    plan = dataclasses.replace(
        Plan(sites={name: SitePlan(Format.FP16) for name in ("embed", "norm", "fc1", "fc2")}),
        loss_format=None,
        scaler=ScalerConfig(enabled=True),
    )
    quality = judge(bench, plan_candidate(plan), batches, reference, seed=0)
    assert not quality.valid
    assert "skipped" in quality.reason, "no loss scale brings the outputs into FP16's range"


@pytest.mark.parametrize("is_stock", [True, False], ids=["stock", "plan"])
def test_steps_that_a_scaler_skips_until_its_scale_suits_are_no_loss_gap(make_bench: Make, is_stock: bool) -> None:
    """From 2**30 a scale goes down for some steps, in which nothing is learnt."""
    bench, batches = make_bench(steps=40)
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    scaler = ScalerConfig(enabled=True, init_scale=2.0**30)
    plan = dataclasses.replace(
        Plan(sites={name: SitePlan(Format.FP16) for name in ("embed", "norm", "fc1", "fc2")}), scaler=scaler
    )
    stock = Candidate("autocast-fp16", autocast=Format.FP16, scaler=scaler)
    quality = judge(bench, stock if is_stock else plan_candidate(plan), batches, reference, seed=0)
    assert quality.skipped > 0
    assert quality.loss_scale is not None
    assert quality.loss_scale < 2.0**30
    assert quality.valid, quality.reason
    assert abs(quality.loss_gap) < 0.002


def test_a_scale_may_need_more_halvings_than_there_are_steps(make_bench: Make) -> None:
    """A loss that is a sum may be a hundred thousand; its user's scaler has settled long before the epoch ends."""
    bench, batches = make_bench(MLP.replace("F.cross_entropy(", "1e5 * F.cross_entropy("), steps=20)
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    stock = Candidate("autocast-fp16", autocast=Format.FP16, scaler=ScalerConfig(enabled=True, init_scale=2.0**30))
    quality = judge(bench, stock, batches, reference, seed=0)
    assert quality.skipped >= 20
    assert quality.loss_scale is not None
    assert quality.loss_scale < 2.0**30 / 2**20
    assert quality.valid, quality.reason


def test_a_loss_gap_says_what_its_noise_may_make_of_it(make_bench: Make) -> None:
    """One order of the batches says nothing of noise, and three do."""
    bench, batches = make_bench(MLP.replace("lr=3e-3", "lr=0.3"), steps=8)
    reference = measure_reference(bench, batches, tolerance=1e-9, seed=0)
    reference = dataclasses.replace(reference, noise=0.0, losses=[loss / 2 for loss in reference.losses], shaken=[0.0])
    stock = Candidate("autocast-bf16", autocast=Format.BF16)
    one = judge(bench, stock, batches, reference, seed=0, num_orders=1)
    assert re.fullmatch(r"loss gap \S+%, allowed 0\.000%", one.reason)
    three = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
    assert re.fullmatch(r"loss gap \S+%, with its noise up to \S+%, allowed 0\.000%", three.reason)


def test_a_gap_that_rounding_at_random_gives_too_is_allowed(make_bench: Make) -> None:
    """The tolerance asks for less than any rounding leaves; FP32 whose weights are rounded at random is as far off."""
    bench, batches = make_bench(steps=8)
    reference = dataclasses.replace(measure_reference(bench, batches, tolerance=1e-9, seed=0), noise=0.0)
    assert not reference.shaken
    quality = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
    assert quality.valid, quality.reason
    assert quality.threshold == reference.shaken[0] > quality.loss_gap > 1e-9
    assert quality.threshold < 1e-2
    assert len(reference.waits) > NUM_ORDERS, "those runs are no candidate's time"
    runs = len(reference.waits)
    judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
    assert len(reference.waits) == runs, "it is found out once"


def test_a_mean_within_the_noise_of_fp32_passes_however_far_its_orders_are_apart(make_bench: Make) -> None:
    bench, batches = make_bench(steps=8)
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    know_order(bench, batches, reference, 1, 0)
    know_order(bench, batches, reference, 2, 0)
    losses = [loss * factor for loss, factor in zip(reference.losses, (1.02, 0.98, 1.0), strict=True)]
    apart = dataclasses.replace(reference, losses=losses, noise=0.01)
    quality = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, apart, seed=0)
    assert quality.valid, quality.reason
    assert quality.upper == quality.loss_gap < quality.threshold == 0.01
    assert not apart.shaken
    quiet = dataclasses.replace(apart, noise=0.0, shaken=[0.0])
    assert "with its noise up to" in judge(bench, plan_candidate(BF16_EVERYWHERE), batches, quiet, seed=0).reason


def test_no_noise_is_asked_for_where_a_gradient_is_wrong(make_bench: Make) -> None:
    bench, batches = make_bench()
    reference = measure_reference(bench, batches, tolerance=1e-9, seed=0)
    with broken_forward(bench, "fc1", lambda self, x: torch.nn.functional.linear(x, self.weight.detach(), self.bias)):
        quality = judge(bench, Candidate("frozen"), batches, reference, seed=0)
    assert not quality.valid
    assert not reference.shaken


def test_a_loss_that_is_further_off_than_rounding_takes_it_is_refused(make_bench: Make) -> None:
    bench, batches = make_bench(steps=8)
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    losses = [loss / 1.1 for loss in reference.losses]
    reference = dataclasses.replace(reference, noise=0.0, losses=losses, shaken=[0.01])
    quality = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
    assert re.fullmatch(r"loss gap \+[2-5]\.\d+%, allowed 1\.000%", quality.reason)


def test_rounding_at_random_excuses_no_lost_updates(make_bench: Make) -> None:
    """Parameters in BF16 have the right gradients and lose what is below half a step of theirs."""
    bench, batches = make_bench(MLP.replace("lr=3e-3", "lr=1e-4"), steps=8)
    reference = dataclasses.replace(measure_reference(bench, batches, 1e-9, seed=0), noise=0.0, shaken=[0.05])
    quality = judge(bench, params_candidate("bf16"), batches, reference, seed=0)
    assert quality.gate is not None
    assert quality.gate.passed
    assert 1e-9 < quality.loss_gap < 0.05
    assert quality.reason.startswith("loss gap")


def test_rounding_at_random_excuses_no_steps_left_out(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SETTLING", 0)
    bench, batches = make_bench(steps=40)
    reference = dataclasses.replace(measure_reference(bench, batches, 1e-9, seed=0), noise=0.0, shaken=[1.0])
    stock = Candidate("autocast-fp16", autocast=Format.FP16, scaler=ScalerConfig(enabled=True, init_scale=2.0**30))
    quality = judge(bench, stock, batches, reference, seed=0, num_orders=1)
    assert quality.gate is not None
    assert quality.gate.passed
    assert 0 < quality.skipped <= quality.steps // 2
    assert quality.reason.startswith("loss gap")


def test_a_model_that_noise_on_its_weights_breaks_allows_no_more(make_bench: Make) -> None:
    """A covariance stays positive definite under training, and does not under noise on its elements."""
    covariance = """
        self.covariance = nn.Parameter(torch.ones(8, 8) + 1e-2 * torch.eye(8), requires_grad=True)"""
    code = MLP.replace("        self.fc1 =", f"{covariance[1:]}\n        self.fc1 =").replace(
        "return self.fc2(", "return torch.linalg.cholesky(self.covariance).sum() * 1e-3 + self.fc2("
    )
    bench, batches = make_bench(code.replace("lr=3e-3", "lr=1e-7, weight_decay=0.0"))
    reference = dataclasses.replace(measure_reference(bench, batches, tolerance=1e-9, seed=0), noise=0.0)
    assert shaken_noise(bench, batches, reference, seed=0) == 0.0
    assert reference.shaken == [0.0]
    assert "shaken" not in bench.kept


COVARIANCE = MLP.replace(
    "        self.fc1 =",
    "        self.covariance = nn.Parameter(64 * torch.ones(8, 8) + 2e-2 * torch.eye(8))\n        self.fc1 =",
).replace("lr=3e-3", "lr=1e-4, weight_decay=0.0")
RAISING = COVARIANCE.replace(
    "return self.fc2(", "return torch.linalg.cholesky(self.covariance).sum() * 1e-3 + self.fc2("
)
TURNING_NAN = COVARIANCE.replace(
    "return self.fc2(", "return torch.linalg.det(self.covariance + 0.0).sqrt() * 1e-3 + self.fc2("
)


@pytest.mark.parametrize(
    ("code", "broken_by"),
    [(RAISING, r"_LinAlgError: .*not positive-definite.* \(.*model\.py:\d+\)"), (TURNING_NAN, "its loss is nan")],
    ids=["raises", "NaN"],
)
def test_a_model_that_noise_on_its_weights_breaks_is_judged_by_what_can_be_measured(
    make_bench: Make, code: str, broken_by: str
) -> None:
    """A covariance of numbers near 64 is positive definite, and is not with noise of 2^-9 on its elements."""
    bench, batches = make_bench(code, steps=8)
    reference = measure_reference(bench, batches, tolerance=0.02, seed=0)
    assert re.fullmatch(broken_by, reference.broken_by)
    assert reference.noise_size == Format.FP32.epsilon / 2
    assert 0 <= reference.noise < 1e-3
    assert "the model does not train from weights 2e-04 off" in str(broken_note(reference))
    quality = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
    assert quality.valid, quality.reason
    assert all(
        math.isfinite(bar.cosine) and math.isfinite(bar.ratio) for bar in next(iter(reference.bars.values())).values()
    )
    with broken_forward(bench, "fc1", lambda self, x: torch.nn.functional.linear(x, self.weight.detach(), self.bias)):
        assert not judge(bench, Candidate("frozen"), batches, reference, seed=0).valid


def test_a_model_that_trains_with_noise_has_nothing_to_be_told(make_bench: Make) -> None:
    bench, batches = make_bench()
    assert broken_note(measure_reference(bench, batches, tolerance=0.005, seed=0)) is None


def test_weights_are_set_back_where_a_forward_gives_them_other_data(make_bench: Make) -> None:
    """Max-norm constraints are written so."""
    constrained = "self.fc1.weight.data = torch.renorm(self.fc1.weight.data, 2, 0, 100.0)\n        return self.fc2("
    bench, batches = make_bench(MLP.replace("return self.fc2(", constrained).replace("lr=3e-3", "lr=0.0"))
    with shaken(bench, 2.0**-8, seed=0), training(bench, Candidate("fp32")) as run:
        run.optimizer.param_groups[0]["weight_decay"] = 0.0
        run.step(batches.train[0])
    assert torch.equal(bench.model.get_parameter("fc1.weight"), bench.initial["fc1.weight"])


def test_weights_are_set_back_where_there_is_no_room_for_noise(
    make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, batches = make_bench()
    drawn = iter([torch.ones(())] * 2)

    def randn(*_: Any, **__: Any) -> torch.Tensor:
        for each in drawn:
            return each.clone()
        raise torch.OutOfMemoryError

    with shaken(bench, 2.0**-8, seed=0), training(bench, Candidate("fp32")) as run, monkeypatch.context() as patched:
        patched.setattr(torch, "randn", randn)
        with pytest.raises(torch.OutOfMemoryError):
            run.step(batches.train[0])
    assert all(torch.equal(p, bench.initial[name]) for name, p in bench.model.named_parameters())
    assert "shaken" not in bench.kept


def test_shaken_steps_see_other_weights_than_the_optimizer(make_bench: Make) -> None:
    bench, batches = make_bench(MLP.replace("lr=3e-3", "lr=0.0, weight_decay=0.0"))

    def run(relative: float) -> list[float]:
        losses = list[float]()
        with shaken(bench, relative, seed=0), training(bench, Candidate("fp32")) as run:
            for _ in range(3):
                losses.append(run.step(batches.train[0]).item())
        return losses

    assert len(set(run(0.0))) == 1
    assert len(set(run(2.0**-9))) == 3, "the noise of each step is its own"
    assert all(torch.equal(p, bench.initial[name]) for name, p in bench.model.named_parameters())
    assert "shaken" not in bench.kept


@pytest.mark.parametrize("factor", [1.0, 2.0**24], ids=["mean", "sum of very many"])
def test_gradients_in_fp16_are_compared_under_a_scale_that_they_bear(make_bench: Make, factor: float) -> None:
    """Of a summed loss that may be one below 1: under a larger one all of them are infinite."""
    bench, batches = make_bench(MLP.replace("F.cross_entropy(", f"{factor} * F.cross_entropy("))
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    stock = Candidate("autocast-fp16", autocast=Format.FP16, scaler=ScalerConfig(enabled=True))
    assert misled(bench, stock, batches, reference, seed=0) == ()
    found = gradients_at(bench, stock, batches, reference.state, seed=0)
    assert found.scale < 1 if factor > 1 else found.scale > 1


def test_no_loss_scale_is_looked_for_where_none_helps(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    under_autocast = "(float('nan') if torch.is_autocast_enabled('cpu') else 1)"
    bench, batches = make_bench(MLP.replace("weights + F.relu", f"weights + {under_autocast} * F.relu"))
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    losses = list[float]()
    monkeypatch.setattr(bench, "backward", lambda loss: (losses.append(loss.item()), loss.backward()))
    stock = Candidate("autocast-fp16", autocast=Format.FP16, scaler=ScalerConfig(enabled=True))
    assert "fc2.weight" in misled(bench, stock, batches, reference, seed=0)
    assert sum(map(math.isnan, losses)) == 3, "a step, the scale that was asked for, and the least one"


def test_gradients_of_a_recipe_are_compared_once(make_bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found before the first trial is what its own trial finds, unless that has come to a scale between."""
    compared = list[str]()

    def counted(bench: Workbench, candidate: Candidate, *rest: Any) -> Gradients:
        compared.append(candidate.name)
        return gradients_at(bench, candidate, *rest)

    bench, batches = make_bench()
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    monkeypatch.setattr(judging, "gradients_at", counted)
    bf16 = Candidate("autocast-bf16", autocast=Format.BF16)
    fp16 = Candidate("autocast-fp16", autocast=Format.FP16, scaler=ScalerConfig(enabled=True))
    for candidate in (bf16, fp16):
        assert misled(bench, candidate, batches, reference, seed=0) == ()
        assert judge(bench, candidate, batches, reference, seed=0).valid
    assert compared.count("autocast-bf16") == compared.count("autocast-fp16") == 1
    judge(bench, with_scale(fp16, 1.0), batches, reference, seed=0)
    assert compared.count("autocast-fp16") == 2, "gradients under a smaller scale are others"


def test_a_reference_that_is_nan_is_an_error_of_the_model(make_bench: Make) -> None:
    bench, batches = make_bench(MLP.replace("return self.fc2(", "return float('nan') * self.fc2("))
    with pytest.raises(TuneError, match="nan before the first step"):
        measure_reference(bench, batches, tolerance=0.005, seed=0)


NAN_IN_BATCH = (
    MLP.replace("self.embed(ids)", "self.embed(ids) * weight")
    .replace("def forward(self, ids):", "def forward(self, ids, weight):")
    .replace("yield ids, ids % 13", "yield (ids, torch.tensor([1.0, float('nan')]).repeat(8)), ids % 13")
)
NAN_IN_WEIGHTS = MLP.replace(
    "    return Net()", "    net = Net()\n    net.fc2.bias.data[3] = float('nan')\n    return net"
)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (NAN_IN_BATCH, "weight of the batch holds 8 NaN among 16 numbers"),
        (NAN_IN_WEIGHTS, "the parameter fc2.bias holds 1 NaN among 13 numbers"),
    ],
)
def test_what_holds_nan_before_anything_was_computed_is_named(make_bench: Make, source: str, named: str) -> None:
    bench, batches = make_bench(source)
    with pytest.raises(TuneError, match=f"nan before the first step: {named}"):
        measure_reference(bench, batches, tolerance=0.005, seed=0)


def test_the_loss_of_a_model_that_eval_mode_does_not_suit_yet_is_not_the_scale(make_bench: Make) -> None:
    bench, batches = make_bench(MLP.replace("return self.fc2(", "return (1 if self.training else 1e3) * self.fc2("))
    reference = measure_reference(bench, batches, tolerance=0.005, seed=0)
    assert reference.initial_loss < 10 < reference.losses[0]


def test_dropout_is_off_where_candidates_are_judged_and_on_where_they_are_timed(make_bench: Make) -> None:
    bench, batches = make_bench(
        MLP.replace("F.relu(self.fc1(x))", "F.dropout(F.relu(self.fc1(x)), 0.5, self.training)")
    )
    reference = measure_reference(bench, batches, tolerance=0.02, seed=0)
    assert bench.has_dropout
    quality = judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0)
    assert quality.valid, quality.reason
    assert quality.gate is not None
    assert quality.gate.worst_cosine > 0.98, "with masks of its own it would point elsewhere"
    with training(bench, Candidate("fp32")) as run, torch.no_grad():
        assert run.loss(batches.train[0]) != run.loss(batches.train[0])


def test_calm_training_is_judged_on_one_order(make_bench: Make) -> None:
    bench, batches = make_bench(steps=8)
    reference = measure_reference(bench, batches, tolerance=0.5, seed=0)
    assert judge(bench, plan_candidate(BF16_EVERYWHERE), batches, reference, seed=0).steps == 8
    assert len(reference.losses) == 1
    strict = dataclasses.replace(reference, tolerance=1e-9)
    assert judge(bench, plan_candidate(BF16_EVERYWHERE), batches, strict, seed=0).steps == 24
    assert len(reference.losses) == 3


def test_too_few_batches_are_named(make_bench: Make) -> None:
    finite = MLP.replace("while True:", "for _ in range(5):")
    with pytest.raises(CaptureError, match="yielded 5 batches, but 10 are needed"):
        make_bench(finite, steps=6)


def test_upper_bound_grows_with_the_spread() -> None:
    assert upper_bound([0.01, 0.01, 0.01]) == pytest.approx(0.01)
    assert upper_bound([0.0, 0.01, 0.02]) > 0.02


def gate(reference: torch.Tensor, found: torch.Tensor | None):  # type: ignore[no-untyped-def]
    big = torch.ones(100)
    return compare_gradients({"w": reference, "other": big}, {"other": big} | ({} if found is None else {"w": found}))


def test_gradient_gate() -> None:
    g = torch.linspace(-1, 1, 100)
    assert gate(g, g * 1.05).passed
    assert "norm" in gate(g, g * 1.2).failures[0]
    assert "points elsewhere" in gate(g, g.flip(0)).failures[0]
    assert "no gradient" in gate(g, None).failures[0]
    assert "not finite" in gate(g, g / 0.0).failures[0]
    flushed = torch.where(g.abs() < 0.1, torch.zeros_like(g), g)
    assert "underflow to zero" in gate(g, flushed).failures[0]


def test_two_zeros_in_a_bias_are_no_underflow() -> None:
    g = torch.linspace(-1, 1, 60)
    found = g.clone()
    found[29:31] = 0.0
    assert gate(g, found).passed


def test_rounding_noise_around_a_true_zero_is_not_judged() -> None:
    assert gate(torch.full((10,), 1e-9), torch.full((10,), -1e-9)).passed


def test_the_lowest_cosine_is_reported() -> None:
    straight, off = torch.tensor([3.0, 4.0]), torch.tensor([5.0, 0.0])
    result = compare_gradients({"a": straight, "b": straight}, {"a": off, "b": 1.05 * straight})
    assert result.worst_cosine == pytest.approx(0.6)


def test_noise_is_the_share_of_what_each_bar_allows() -> None:
    g, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    reference = dict.fromkeys("abc", g)
    found = {"a": g + 0.1 * other, "b": g + 0.05 * other, "c": g + 0.4 * other}
    noise = compare_gradients(reference, found, {"c": Bar(cosine=0.9)}).noise
    assert noise is not None
    allowed, by_c = 1 / 0.98**2 - 1, 0.4**2 / (1 / 0.9**2 - 1)
    assert noise.worst == pytest.approx(by_c)
    assert noise.typical == pytest.approx(0.1**2 / allowed)


def test_a_gradient_that_has_no_direction_in_fp32_either_gives_no_noise() -> None:
    g, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    found = {"a": g + 0.1 * other, "b": -g}
    noise = compare_gradients({"a": g, "b": g}, found, {"b": Bar(cosine=-0.5)}).noise
    assert noise is not None
    assert noise.worst == pytest.approx(0.1**2 / (1 / 0.98**2 - 1))
    assert compare_gradients({"b": g}, {"b": -g}, {"b": Bar(cosine=-0.5)}).noise is None


@pytest.mark.parametrize("broken", [None, torch.tensor([math.nan, 0.0])])
def test_what_is_missing_or_not_finite_has_no_noise(broken: torch.Tensor | None) -> None:
    g = torch.tensor([1.0, 0.0])
    found = {"a": g} if broken is None else {"a": g, "b": broken}
    assert compare_gradients({"a": g, "b": g}, found).noise is None


DEEP = """
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24)

    def forward(self, x):
        return self.norm(self.fc(x)).relu()


def make_model():
    return nn.Sequential(nn.Linear(12, 24), *(Block() for _ in range(14)), nn.Linear(24, 7))


def train_batches():
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(16, 12, generator=generator), torch.randint(7, (16,), generator=generator)


def make_batch():
    return next(train_batches())


def loss_fn(output, batch):
    return F.cross_entropy(output, batch[1])


def make_optimizer(params):
    return torch.optim.AdamW(params, lr=1e-4)
"""


def test_a_gradient_that_fp32_itself_does_not_hold_is_not_asked_of_bf16(make_bench: Make) -> None:
    """Fourteen BatchNorm layers at their start: weights a rounding apart have gradients that point elsewhere."""
    bench, batches = make_bench(DEEP, steps=4)
    reference = measure_reference(bench, batches, tolerance=0.5, seed=0)
    autocast = Candidate("autocast-bf16", autocast=Format.BF16)
    quality = judge(bench, autocast, batches, reference, seed=0)
    assert quality.gate is not None
    assert quality.gate.worst_cosine < 0.9
    assert quality.valid, quality.reason

    def frozen(self, x):  # type: ignore[no-untyped-def]
        return torch.nn.functional.linear(x, self.weight.detach(), self.bias)

    with broken_forward(bench, "15", frozen):
        assert not judge(bench, autocast, batches, reference, seed=0).valid


def test_bars_stay_where_the_reference_is_calm() -> None:
    gradients = {"a": torch.randn(1000), "zero": torch.zeros(4)}
    calm = bars_of(gradients, [{"a": gradients["a"] * 1.001, "zero": torch.zeros(4)}])
    assert calm["a"].cosine == 0.98
    assert calm["a"].ratio == pytest.approx(1 / 0.9)
    assert "zero" not in calm
    noisy = bars_of(gradients, [gradients, {"a": gradients["a"] + torch.randn(1000)}])
    assert noisy["a"].cosine < 0.9
    assert noisy["a"].ratio > 1.2


def test_perturbed_weights_differ_by_their_share_and_buffers_not_at_all() -> None:
    state = {"w": torch.full((10_000,), 2.0), "steps": torch.tensor(3), "running": torch.ones(3)}
    found = perturb(state, ["w"], 1e-3, 0, torch.device("cpu"))
    assert (found["w"] - 2).std().item() == pytest.approx(2e-3, rel=0.05)
    assert torch.equal(found["running"], state["running"])
    assert torch.equal(perturb(state, ["w"], 1e-3, 0, torch.device("cpu"))["w"], found["w"])


@pytest.mark.parametrize(
    ("instead", "why"),
    [
        ("raise RuntimeError('predict() instead')", r"RuntimeError: predict\(\) instead \(.*model\.py:\d+\)"),
        ("return [{'boxes': ids}]", r"AttributeError: 'list' object has no attribute 'flatten' \(.*model\.py:\d+\)"),
    ],
    ids=["raises", "gives something else"],
)
def test_a_model_that_gives_no_loss_in_eval_mode_is_judged_in_train_mode(
    make_bench: Make, instead: str, why: str
) -> None:
    before = "        x = self.norm("
    detector = MLP.replace(before, f"        if not self.training:\n            {instead}\n{before}")
    bench, batches = make_bench(detector)
    reference = measure_reference(bench, batches, 0.005, seed=0)
    assert not bench.evaluates
    assert re.fullmatch(why, bench.eval_error)
    expected, usual = make_bench(MLP)
    assert reference.losses == measure_reference(expected, usual, 0.005, seed=0).losses, "there is no dropout"


def test_losses_of_fp32_that_tell_little_are_a_note() -> None:
    reference = Reference([3.0, 5.0], 2.0, 1.74, {}, {}, 0.005)
    assert "FP32 runs are 174% apart while it goes from 2 to 4" in str(noise_note(reference))
    assert "while" not in str(noise_note(dataclasses.replace(reference, initial_loss=6.0)))
    assert noise_note(dataclasses.replace(reference, noise=0.02)) is None
