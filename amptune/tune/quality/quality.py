"""Does a candidate train as well as FP32? Judged by a loss gap after K steps and by a gate on every gradient.

K steps alone are nearly blind: a layer that never trains can stay within 0.5 % of the loss. So next to the gap each
parameter's gradient is compared with the reference's at the same weights.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

import torch

from amptune.core.plan import BF16_MASTER
from amptune.tune.quality.gate import (
    NUM_PERTURBED,
    Bar,
    GradientGate,
    Gradients,
    bars_of,
    compare_gradients,
    perturb,
    rounding_of,
)
from amptune.tune.quality.reference import (
    CALM,
    CLEAR,
    NUM_ORDERS,
    Compared,
    Reference,
    know_order,
    repeats_itself,
    shaken_noise,
    upper_bound,
)
from amptune.tune.quality.trained import gradients_at, loss_after_training, user_evaluation
from amptune.tune.running.batches import Batches
from amptune.tune.running.childprocess import is_fatal
from amptune.tune.running.recipes import Candidate, with_scale
from amptune.tune.running.training import Run, Workbench, eager

SETTLING = 3
"""How often a candidate trains anew with the loss scale that its scaler has come to: a summed loss of tens of thousands
takes more halvings of 65536 than there are steps."""
CLEARLY_WRONG = 1.25
"""Noise in the gradients, as a share of what their bar allows, that compiling does not bring below the bar."""


@dataclasses.dataclass(frozen=True)
class Quality:
    """Verdict on one candidate.

    Attributes:
        loss_gap: signed, (L_candidate - L_reference) / max(|L_reference|, L_initial - L_reference), mean over orders.
        upper: upper end of its one-sided 95 % interval, or the gap itself where it is judged by that.
        threshold: what ``upper`` may be: the larger of the tolerance and the reference's own noise.
        gate: gradients; ``None`` when the candidate's losses were not finite.
        skipped: optimizer steps that the scaler skipped, of ``steps``.
        loss_scale: where steps were skipped at first, the scale that the loss was multiplied by from then on.
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
    loss_scale: float | None = None

    @property
    def valid(self) -> bool:
        """Whether it trains as well as the reference."""
        return not self.reason


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
    noise nor the gap comes near the tolerance; and where the others are known to repeat the first. Then the gap itself
    is judged, without an interval. So is a stock recipe's first gap that is clearly small, however noisy the reference:
    to let a recipe pass that should not only raises what plans are compared with.

    A candidate with the right gradients whose gap may be too large is asked whether its mean is one that FP32 has to
    itself: see ``_judged_gap``; with more of that noise where gradients tell all: see ``_is_told_by_gradients``.

    Steps that a scaler skips until its scale suits the model are a few of thousands, but of K steps they are a loss
    gap: then the candidate trains anew with the scale that it found.
    """
    settled = _settled(bench, candidate, batches, seed)
    candidate, gaps, skipped = settled.candidate, list[float](), 0
    evaluation = None
    for order in range(num_orders):
        know_order(bench, batches, reference, order, seed)
        if order and repeats_itself(batches, reference):
            break
        loss, run = settled.first if order == 0 else loss_after_training(bench, candidate, batches, order, seed)
        skipped += run.skipped
        if not math.isfinite(loss):
            return _failed(reference, settled.skipped + skipped, f"the loss is {loss} after {len(batches.train)} steps")
        if order == 0:
            evaluation = user_evaluation(bench)
        gaps.append(reference.gap(order, loss))
        is_calm = reference.noise < CALM * reference.tolerance
        if (is_calm or candidate.is_stock) and abs(gaps[0]) < CLEAR * reference.tolerance:
            break
    steps = len(gaps) * len(batches.train)
    gap, upper = statistics.fmean(gaps), upper_bound(gaps)
    gate = _gate(bench, candidate, batches, reference, seed)
    threshold = reference.threshold
    if upper > threshold and gate.passed:
        is_told = _is_told_by_gradients(candidate, skipped)
        upper, threshold = _judged_gap(bench, batches, reference, gaps, seed, shakes=is_told)
    reason = _reason(gap, upper, threshold, gate, skipped, steps)
    skipped, steps = settled.skipped + skipped, settled.steps + steps
    return Quality(gap, upper, threshold, gate, skipped, steps, reason, evaluation, settled.loss_scale)


def _judged_gap(
    bench: Workbench, batches: Batches, reference: Reference, gaps: Sequence[float], seed: int, *, shakes: bool
) -> tuple[float, float]:
    """The gap that a candidate is judged by, and what it may be.

    The noise of FP32 is a bound on what a mean over orders may be without harm, so it is the candidate's mean that is
    compared with it: with its interval on top, two candidates that train alike would pass or fail by the toss of a
    coin. A mean beyond that noise may still be what rounding without a direction gives FP32 too (``shaken_noise``),
    which is asked where ``shakes`` says so.
    """
    mean, noise = statistics.fmean(gaps), reference.noise
    if mean > noise and shakes:
        noise = max(noise, shaken_noise(bench, batches, reference, seed))
    if mean <= noise or noise > reference.threshold:
        return mean, max(noise, reference.threshold)
    return upper_bound(gaps), reference.threshold


def _is_told_by_gradients(candidate: Candidate, skipped: int) -> bool:
    """Whether right gradients leave nothing but rounding without a direction for a loss gap: not where steps are left
    out, nor where BF16 parameters are stepped themselves, whose small updates are lost."""
    return not skipped and candidate.params in (None, BF16_MASTER)


@dataclasses.dataclass(frozen=True)
class _Settled:
    """A candidate with the loss scale that suits the model, and what it took to find that.

    Attributes:
        first: the loss and the run of the first order of the batches with it.
        skipped: optimizer steps that were skipped until then, of ``steps``.
        loss_scale: None where none was skipped.
    """

    candidate: Candidate
    first: tuple[float, Run]
    skipped: int
    steps: int
    loss_scale: float | None


def _settled(bench: Workbench, candidate: Candidate, batches: Batches, seed: int) -> _Settled:
    """Train on the first order until no step is skipped, each time with the scale that the scaler has come to."""
    skipped = steps = 0
    loss_scale = None
    loss, run = loss_after_training(bench, candidate, batches, 0, seed)
    for _ in range(SETTLING):
        if not run.skipped:
            break
        skipped, steps = skipped + run.skipped, steps + run.steps
        loss_scale = run.scaler.get_scale()
        candidate = with_scale(candidate, loss_scale)
        loss, run = loss_after_training(bench, candidate, batches, 0, seed)
    return _Settled(candidate, (loss, run), skipped, steps, loss_scale)


def reference_itself(reference: Reference, batches: Batches) -> Quality:
    """The verdict on the recipe that the reference was trained with: it trains as it trains."""
    gate = GradientGate(1.0, ())
    return Quality(0.0, 0.0, reference.threshold, gate, 0, NUM_ORDERS * len(batches.train), "", reference.evaluation)


def refused_ahead(
    bench: Workbench, candidate: Candidate, batches: Batches, reference: Reference, seed: int
) -> Quality | None:
    """The verdict on a candidate whose gradients are clearly wrong in eager mode already: compiled code fuses more, but
    rounds as much. None where they are not."""
    gate = _gate_ahead(bench, candidate, batches, reference, seed)
    if gate.passed or (gate.noise is not None and gate.noise.worst < CLEARLY_WRONG):
        return None
    quality = _failed(reference, 0, _reason(0.0, 0.0, 0.0, gate, 0, 0))
    return dataclasses.replace(quality, gate=gate)


def misled(
    bench: Workbench, candidate: Candidate, batches: Batches, reference: Reference, seed: int
) -> tuple[str, ...]:
    """The parameters whose gradients miss their bar under a candidate, in eager mode."""
    return _gate_ahead(bench, candidate, batches, reference, seed).failing


def _gate_ahead(
    bench: Workbench, candidate: Candidate, batches: Batches, reference: Reference, seed: int
) -> GradientGate:
    """How the gradients compare in eager mode, kept for the trial of the same candidate."""
    with eager(bench):
        found = _compared(bench, candidate, batches, reference, seed)
        if _runs_as_written(bench, candidate):
            reference.ahead[candidate.key] = found
        return found.gate


def _gate(bench: Workbench, candidate: Candidate, batches: Batches, reference: Reference, seed: int) -> GradientGate:
    """How the gradients compare: as they were found ahead, where they would be the same again."""
    known = reference.ahead.get(candidate.key)
    if known is not None and known.holds_for(_asked_scale(candidate)) and _runs_as_written(bench, candidate):
        return known.gate
    return _compared(bench, candidate, batches, reference, seed).gate


def _compared(bench: Workbench, candidate: Candidate, batches: Batches, reference: Reference, seed: int) -> Compared:
    found = gradients_at(bench, candidate, batches, reference.state, seed)
    gate = compare_gradients(reference.gradients, found.named, _bars(bench, candidate, batches, reference, seed))
    return Compared(gate, _asked_scale(candidate), found.scale)


def _asked_scale(candidate: Candidate) -> float:
    return candidate.scaler.init_scale if candidate.scaler.enabled else 1.0


def _runs_as_written(bench: Workbench, candidate: Candidate) -> bool:
    """Whether gradients are of code that nothing compiles, as ``still`` and what is around it have it."""
    is_eager = bench.compilation is None or bench.has_dropout is not False
    return is_eager and not candidate.compiles_loss and not bench.compiles_itself


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
            found = (_gradients_off(bench, batches, state, seed) for state in states)
            reference.bars[rounding] = bars_of(reference.gradients, found)
    return reference.bars[rounding]


def _gradients_off(bench: Workbench, batches: Batches, state: dict[str, torch.Tensor], seed: int) -> Gradients:
    """FP32's gradients at weights with noise; none, which lowers no bar, where the model does not run with it: that is
    no mistake of the candidate's that is judged."""
    try:
        return gradients_at(bench, Candidate("fp32"), batches, state, seed).named
    except Exception as error:
        if is_fatal(error):
            raise
        return {}


def _reason(gap: float, upper: float, threshold: float, gate: GradientGate, skipped: int, steps: int) -> str:
    if skipped > steps // 2:
        return f"the scaler skipped {skipped} of {steps} steps"
    if upper > threshold:
        likely = f", with its noise up to {upper:+.3%}" if upper > gap else ""
        return f"loss gap {gap:+.3%}{likely}, allowed {threshold:.3%}"
    if gate.failures:
        more = f" (and {len(gate.failures) - 1} more)" if len(gate.failures) > 1 else ""
        return gate.failures[0] + more
    return ""


def _failed(reference: Reference, skipped: int, reason: str) -> Quality:
    return Quality(math.inf, math.inf, reference.threshold, None, skipped, 0, reason)
