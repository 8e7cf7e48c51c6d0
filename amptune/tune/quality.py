"""Does a candidate train as well as FP32? Judged by a loss gap after K steps and by a gate on every gradient.

K steps alone are nearly blind: a layer that never trains can stay within 0.5 % of the loss. So next to the gap each
parameter's gradient is compared with the reference's at the same weights.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence

import torch

from amptune.errors import CaptureError, TuneError
from amptune.tune.batches import Batches
from amptune.tune.gate import NUM_PERTURBED, Bar, GradientGate, bars_of, compare_gradients, perturb, rounding_of
from amptune.tune.parting import Parting
from amptune.tune.recipes import Candidate, backend_flags
from amptune.tune.state import tensors_of
from amptune.tune.training import Run, Workbench, eager, loss_of, seed_everything, still, training

NUM_ORDERS = 3
MEMORISED = 0.5
"""Share of the initial loss under which a batch is learnt by heart. The gradient of cross-entropy is then the small
rest 1 - p, which a logit that is off by d multiplies by exp(d): a rounding that training never notices would look like
a wrong gradient. At a tenth, ConvNeXt's gradients under autocast in BF16 were off by up to 14 % in their norms."""
PERTURBATION = 2.0**-12
"""Relative size of the noise on the weights: a quarter of FP16's distance between numbers."""
CALM = 0.1
"""A first gap under this share of the tolerance says that training is calm; the other orders are not run."""
CLEAR = 0.25
"""A candidate's first gap under this share of the tolerance is clear where the reference is calm: other orders would
have to differ by several times as much."""
T_95_TWO_DEGREES = 2.92
"""One-sided 95 % quantile of Student's t for three paired differences."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """Verdict on one candidate.

    Attributes:
        loss_gap: signed, (L_candidate - L_reference) / max(|L_reference|, L_initial - L_reference), mean over orders.
        upper: upper end of its one-sided 95 % interval.
        threshold: what ``upper`` may be: the larger of the tolerance and the reference's own noise.
        gate: gradients; ``None`` when the candidate's losses were not finite.
        skipped: optimizer steps that the scaler skipped, of ``steps``.
        reason: why it is not valid; empty when it is.
        evaluation: the user's ``evaluate`` after the K steps, in FP32, when there is one.
    """

    loss_gap: float
    upper: float
    threshold: float
    gate: GradientGate | None
    skipped: int
    steps: int
    reason: str
    evaluation: float | None = None

    @property
    def valid(self) -> bool:
        """Whether it trains as well as the reference."""
        return not self.reason


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the FP32 run did: noise, the gradients at the weights ``state``, and the user's ``evaluate`` after the first
    order, when there is one. ``state`` is what the first order ended with, or passed through before the loss was nearly
    gone. ``losses`` are those of the orders that were trained so far: the first alone as long as nothing asks for more.
    ``bars`` holds what gradients have to reach, by rounding."""

    losses: list[float]
    initial_loss: float
    noise: float
    state: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    tolerance: float
    evaluation: float | None = None
    bars: dict[float, dict[str, Bar]] = dataclasses.field(default_factory=dict)

    def gap(self, order: int, loss: float) -> float:
        """Signed relative gap of ``loss`` to this order's reference."""
        scale = self.scale(order)
        return (loss - self.losses[order]) / scale if scale > 0 else math.inf

    def scale(self, order: int) -> float:
        """What gaps are relative to: a loss near zero would make any rounding a large one, hence the progress made."""
        return max(abs(self.losses[order]), self.initial_loss - self.losses[order])


def measure_reference(bench: Workbench, batches: Batches, tolerance: float, seed: int) -> Reference:
    """Train the FP32 reference (TF32 off) in every order and keep what the others are judged against.

    Raises:
        TuneError: the reference itself gives NaN or infinity.
    """
    fp32 = Candidate("fp32")
    with training(bench, fp32):
        initial = _initial_loss(bench, batches)
    judged, losses = _Judged(bench, MEMORISED * initial), list[float]()

    def after_step(loss: torch.Tensor) -> bool:
        losses.append(loss.item())
        return judged.after_step(loss)

    loss = _reference_loss(bench, batches, 0, seed, after_step)
    state = judged.state(loss)
    draft = Reference([loss], initial, 0.0, state, {}, tolerance, user_evaluation(bench))
    noise = _noise(bench, fp32, batches, draft, seed, losses)
    gradients, _ = gradients_at(bench, fp32, batches, state, seed)
    return dataclasses.replace(draft, noise=noise, gradients=bench.keep("gradients", gradients))


class _Judged:
    """The weights that gradients are compared at: the last ones of the first order at which there is still a loss."""

    def __init__(self, bench: Workbench, least_loss: float) -> None:
        self._bench = bench
        self._least = least_loss
        self._state: dict[str, torch.Tensor] = {}

    def after_step(self, loss: torch.Tensor) -> bool:
        """Keep the weights after a step whose loss was not yet small; the run is to go on."""
        if loss.item() < self._least:
            return False
        self._state = {}  # first, so that the device holds one copy; buffers may come, go and change their shape
        self._state = self._snapshot()
        return False

    def state(self, final_loss: float) -> dict[str, torch.Tensor]:
        """The weights to judge at, ``final_loss`` being that of the model's present ones."""
        if final_loss >= self._least or not self._state:
            self._state = {}
            self._state = self._snapshot()
        return self._state

    def _snapshot(self) -> dict[str, torch.Tensor]:
        return self._bench.keep("judged at", tensors_of(self._bench.model))


def _reference_loss(
    bench: Workbench,
    batches: Batches,
    order: int,
    seed: int,
    after_step: Callable[[torch.Tensor], bool] | None = None,
) -> float:
    """What FP32 reaches in one order.

    Raises:
        TuneError: NaN or infinity.
    """
    with eager(bench):
        loss, _ = _train(bench, Candidate("fp32"), batches, order, seed, after_step=after_step)
    if not math.isfinite(loss):
        raise TuneError(
            f"the FP32 reference reaches a loss of {loss} within {len(batches.train)} steps",
            hint="no precision setting can cure this: lower the learning rate in make_optimizer, or check the data",
        )
    return loss


def _know_order(bench: Workbench, batches: Batches, reference: Reference, order: int, seed: int) -> None:
    """Train the reference in this order too, unless it was."""
    if order == len(reference.losses):
        reference.losses.append(_reference_loss(bench, batches, order, seed))


def judge(
    bench: Workbench,
    candidate: Candidate,
    batches: Batches,
    reference: Reference,
    seed: int,
    num_orders: int = NUM_ORDERS,
) -> Quality:
    """Train ``candidate`` as the reference was trained, and compare.

    One order is enough for a candidate that is too slow to win, and where training is calm: neither the reference's
    noise nor the gap comes near the tolerance. Then the gap itself is judged, without an interval.
    """
    gaps: list[float] = []
    skipped, evaluation = 0, None
    threshold = max(reference.tolerance, reference.noise)
    for order in range(num_orders):
        loss, run = _train(bench, candidate, batches, order, seed)
        skipped += run.skipped
        if not math.isfinite(loss):
            return _failed(reference, skipped, f"the loss is {loss} after {len(batches.train)} steps")
        if order == 0:
            evaluation = user_evaluation(bench)
        _know_order(bench, batches, reference, order, seed)
        gaps.append(reference.gap(order, loss))
        if reference.noise < CALM * reference.tolerance and abs(gaps[0]) < CLEAR * reference.tolerance:
            break
    steps = len(gaps) * len(batches.train)
    gap, upper = statistics.fmean(gaps), upper_bound(gaps)
    gradients, loss = gradients_at(bench, candidate, batches, reference.state, seed)
    bars = _bars(bench, candidate, batches, reference, seed)
    gate = compare_gradients(reference.gradients, gradients, bars)
    reason = _reason(gap, upper, threshold, gate, skipped, steps)
    return Quality(gap, upper, threshold, gate, skipped, steps, reason, evaluation)


def reference_itself(reference: Reference, batches: Batches) -> Quality:
    """The verdict on the recipe that the reference was trained with: it trains as it trains."""
    threshold = max(reference.tolerance, reference.noise)
    gate = GradientGate(1.0, "", 1.0, "", ())
    return Quality(0.0, 0.0, threshold, gate, 0, NUM_ORDERS * len(batches.train), "", reference.evaluation)


def upper_bound(gaps: Sequence[float]) -> float:
    """Upper end of the one-sided 95 % interval of the mean of three paired gaps (Student's t); a single gap itself."""
    if len(gaps) == 1:
        return gaps[0]
    return statistics.fmean(gaps) + T_95_TWO_DEGREES * statistics.stdev(gaps) / math.sqrt(len(gaps))


def gradients_at(
    bench: Workbench, candidate: Candidate, batches: Batches, state: dict[str, torch.Tensor], seed: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Unscaled gradients of the first training batch at the weights ``state``, under ``candidate``.

    One step is trained first and the weights are set back, so that a cast kept from older weights shows.
    """
    scale = candidate.scaler.init_scale if candidate.scaler.enabled else 1.0
    with still(bench), training(bench, candidate) as run:
        seed_everything(seed)
        run.step(batches.train[0])
        while True:
            bench.restore(state)
            seed_everything(seed)
            loss = run.loss(batches.train[0])
            bench.backward(loss * scale)
            named = bench.model.named_parameters()
            gradients = {name: p.grad.float() / scale for name, p in named if p.grad is not None}
            if scale <= 1 or all(bool(torch.isfinite(g).all()) for g in gradients.values()):
                return gradients, loss.item()
            # What the scaler does after an overflow: back off and try again.
            scale *= candidate.scaler.backoff_factor


def _initial_loss(bench: Workbench, batches: Batches) -> float:
    """Loss before the first step: the smaller one of eval mode and train mode.

    Running statistics that nothing has run yet normalise nothing: in eval mode such a model may begin at a hundred
    times the loss that it trains from, beside which every gap would be small.

    Raises:
        TuneError: it is NaN or infinity.
    """
    initial = held_back_loss(bench, batches)
    if not math.isfinite(initial):
        raise TuneError(
            f"the loss of the FP32 model is {initial} before the first step",
            hint="no precision setting can cure this: check the batch and the model in FP32 first",
        )
    if not loss_of(bench, Candidate("fp32"), batches.train[0]).requires_grad:
        raise TuneError(
            "the loss does not depend on any parameter of the model that requires a gradient",
            hint="look for .detach(), .item(), argmax or torch.no_grad() between the model's layers and the loss",
        )
    with still(bench):
        trained_from = held_back_loss(bench, batches, train_mode=True)
    return min(initial, trained_from) if math.isfinite(trained_from) else initial


def held_back_loss(bench: Workbench, batches: Batches, *, train_mode: bool = False) -> float:
    """Mean loss of the FP32 parameters, evaluated in FP32, on the held-back batches.

    The model must not be under a plan or autocast here, so that a loss that is merely rounded neither hides nor fakes
    a gap.
    """
    fp32 = Candidate("fp32")
    was_training = bench.model.training
    bench.model.train(train_mode)
    try:
        with bench.no_gradients(), backend_flags(False), eager(bench):
            losses = [loss_of(bench, fp32, batch).float().item() for batch in batches.held_back]
    finally:
        bench.model.train(was_training)
    return statistics.fmean(losses)


def user_evaluation(bench: Workbench) -> float | None:
    """The user's ``evaluate`` on the current weights in FP32, when the target has one.

    Raises:
        CaptureError: it raises, or returns something that is not a number.
    """
    if bench.target.evaluate is None:
        return None
    try:
        with backend_flags(False):
            return float(bench.target.evaluate(bench.model))
    except Exception as error:
        raise CaptureError(f"evaluate(model) raised {type(error).__name__}: {error}") from error


def _train(
    bench: Workbench,
    candidate: Candidate,
    batches: Batches,
    order: int,
    seed: int,
    state: dict[str, torch.Tensor] | None = None,
    after_step: Callable[[torch.Tensor], bool] | None = None,
) -> tuple[float, Run]:
    """Held-back FP32 loss after training on the batches in one order, from ``state`` or the initial weights.

    ``after_step`` is called with each step's loss once its weights are there, and says whether that was enough.
    """
    with still(bench), training(bench, candidate, state) as run:
        seed_everything(seed + order)
        for batch in batches.order(order):
            loss = run.counted_step(batch)
            if after_step is not None and after_step(loss):
                break
    return held_back_loss(bench, batches), run


def _bars(
    bench: Workbench, candidate: Candidate, batches: Batches, reference: Reference, seed: int
) -> dict[str, Bar] | None:
    """What gradients have to reach in the candidate's formats; worked out once for each rounding."""
    rounding = rounding_of(candidate)
    if not rounding:
        return None
    if rounding not in reference.bars:
        names = [name for name, _ in bench.model.named_parameters()]
        states = (
            perturb(reference.state, names, rounding, seed + 1000 * copy, bench.device.torch)
            for copy in range(NUM_PERTURBED)
        )
        with eager(bench):
            found = (gradients_at(bench, Candidate("fp32"), batches, state, seed)[0] for state in states)
            reference.bars[rounding] = bars_of(reference.gradients, found)
    return reference.bars[rounding]


def _noise(
    bench: Workbench, fp32: Candidate, batches: Batches, reference: Reference, seed: int, losses: Sequence[float]
) -> float:
    """How far the reference gets from itself with another random seed and weights perturbed by less than FP16 rounds.

    Training that amplifies such a difference tells nothing about rounding: the same bound that candidates are held to
    (the upper end of the mean gap's interval) is worked out for it. ``losses`` are those of the reference's steps:
    where half of the first run stays clearly close to them, the rest of it is left out.
    """
    names = [name for name, _ in bench.model.named_parameters()]
    state = perturb(bench.initial, names, PERTURBATION, seed, bench.device.torch)

    parting = Parting(losses, reference.scale(0), CLEAR * CALM * reference.tolerance)

    def is_clear(loss: torch.Tensor) -> bool:
        parting.add(loss.item())
        return parting.is_clear

    def gap(order: int) -> float:
        _know_order(bench, batches, reference, order, seed)
        loss, _ = _train(bench, fp32, batches, order, seed + 1000, state, None if order else is_clear)
        return reference.gap(order, loss)

    first = gap(0)
    if parting.is_clear:
        return parting.foreseen
    if abs(first) < CALM * reference.tolerance:
        return abs(first)
    gaps = [first, *(gap(order) for order in range(1, NUM_ORDERS))]
    found = max(*map(abs, gaps), upper_bound(gaps), upper_bound([-g for g in gaps]))
    return found if math.isfinite(found) else 0.0


def _reason(gap: float, upper: float, threshold: float, gate: GradientGate, skipped: int, steps: int) -> str:
    if skipped > steps // 2:
        return f"the scaler skipped {skipped} of {steps} steps"
    if upper > threshold:
        return f"loss gap {gap:+.3%}, up to {upper:+.3%}, allowed {threshold:.3%}"
    if gate.failures:
        more = f" (and {len(gate.failures) - 1} more)" if len(gate.failures) > 1 else ""
        return gate.failures[0] + more
    return ""


def _failed(reference: Reference, skipped: int, reason: str) -> Quality:
    threshold = max(reference.tolerance, reference.noise)
    return Quality(math.inf, math.inf, threshold, None, skipped, 0, reason)
