"""The FP32 run that candidates are judged against: its losses, its own noise, and gradients at its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from amptune.capture.usercode import place_of
from amptune.core.formats import Format
from amptune.errors import TuneError
from amptune.tune.quality.gate import Bar, GradientGate, perturb
from amptune.tune.quality.initialloss import initial_loss
from amptune.tune.quality.shaking import shaken
from amptune.tune.quality.trained import gradients_at, loss_after_training, user_evaluation
from amptune.tune.running.batches import Batches
from amptune.tune.running.childprocess import is_fatal
from amptune.tune.running.kernelerrors import plain_reason
from amptune.tune.running.parting import Parting
from amptune.tune.running.recipes import Candidate
from amptune.tune.running.state import tensors_of
from amptune.tune.running.training import Workbench, eager, training

NUM_ORDERS = 3
"""Orders of the batches that gaps are the mean over."""
MEMORISED = 0.5
"""Share of the initial loss under which a batch is learnt by heart. The gradient of cross-entropy is then the small
rest 1 - p, which a logit that is off by d multiplies by exp(d): a rounding that training never notices would look like
a wrong gradient. At a tenth, ConvNeXt's gradients under autocast in BF16 were off by up to 14 % in their norms."""
PERTURBATION = 2.0**-12
"""Relative size of the noise on the weights: a quarter of FP16's distance between numbers."""
WEAKER = (Format.FP32.epsilon / 2, 0.0)
"""What is tried where a model does not run with that noise: what FP32 rounds by, and other random numbers alone."""
SHAKEN_BY = Format.BF16.epsilon / 2
"""Relative size of the noise on the weights of each step: what BF16 rounds them by."""
CALM = 0.1
"""A first gap under this share of the tolerance says that training is calm; the other orders are not run."""
CLEAR = 0.25
"""A candidate's first gap under this share of the tolerance is clear where the reference is calm: other orders would
have to differ by several times as much."""
T_95_TWO_DEGREES = 2.92
"""One-sided 95 % quantile of Student's t for three paired differences."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """How a candidate's gradients compare, with the loss scale that was asked for and what it was found to bear."""

    gate: GradientGate
    asked: float
    scale: float

    def holds_for(self, scale: float) -> bool:
        """Whether the gradients are the same from another scale on: those between the two are known to overflow."""
        return self.scale <= scale <= self.asked


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the FP32 run did: noise, the gradients at the weights ``state``, and the user's ``evaluate`` after the first
    order, when there is one. ``state`` is what the first order ended with, or passed through before the loss was nearly
    gone. ``losses`` are those of the orders that were trained so far: the first alone as long as nothing asks for more.
    ``waits`` are the seconds of each order but the first, and ``hold`` is told when one begins and ends. ``bars`` holds
    what gradients have to reach, by rounding, and ``ahead`` how those of candidates compare that were looked at before
    their trial. ``shaken`` has the noise of steps with rounded weights, once it was asked for. ``noise_size`` is the
    relative size of what was put on the weights to find ``noise``, and ``broken_by`` what the model raised, or gave,
    with more of it."""

    losses: list[float]
    initial_loss: float
    noise: float
    state: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    tolerance: float
    evaluation: float | None = None
    bars: dict[float, dict[str, Bar]] = dataclasses.field(default_factory=dict)
    waits: list[float] = dataclasses.field(default_factory=list)
    hold: Callable[[bool], None] = lambda _is_held: None
    ahead: dict[str, Compared] = dataclasses.field(default_factory=dict)
    shaken: list[float] = dataclasses.field(default_factory=list)
    noise_size: float = PERTURBATION
    broken_by: str = ""

    @property
    def threshold(self) -> float:
        """What a gap may be with what its own noise makes of it: the larger of the tolerance and the noise of FP32."""
        return max(self.tolerance, self.noise)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """While FP32 trains once more, whose seconds are no candidate's."""
        began = time.monotonic()
        self.hold(True)
        try:
            yield
        finally:
            self.hold(False)
            self.waits.append(time.monotonic() - began)

    def gap(self, order: int, loss: float) -> float:
        """Signed relative gap of ``loss`` to this order's reference."""
        scale = self.scale(order)
        return (loss - self.losses[order]) / scale if scale > 0 else math.inf

    def scale(self, order: int) -> float:
        """What gaps are relative to: a loss near zero would make any rounding a large one, hence the progress made."""
        return max(abs(self.losses[order]), self.initial_loss - self.losses[order])


LOUD = 0.05
"""Noise from which on a loss gap says little: ten times the default tolerance."""


def noise_note(reference: Reference) -> str | None:
    """What the user has to know where FP32 itself trains so differently each time that hardly a plan can be refused by
    its loss; None where it does not."""
    if reference.noise < LOUD:
        return None
    final = sum(reference.losses) / len(reference.losses)
    rises = f" while it goes from {reference.initial_loss:.4g} to {final:.4g}" if final > reference.initial_loss else ""
    return (
        f"the losses of FP32 runs are {reference.noise:.0%} apart{rises}: a plan may be as far off and pass as one "
        "that trains, and only its gradients tell; try a smaller learning rate in make_optimizer, or other batches"
    )


def broken_note(reference: Reference) -> str | None:
    """What the user has to know where the model does not train from weights that are as far off as 16 bits round them;
    None where it does."""
    if not reference.broken_by:
        return None
    size = reference.noise_size
    instead = f"weights {size:.0e} off" if size else "other random numbers alone"
    return (
        f"in FP32 the model does not train from weights {PERTURBATION:.0e} off ({reference.broken_by}): how far FP32 "
        f"gets from itself is measured with {instead}, so that a plan may be refused for what is noise"
    )


def measure_reference(bench: Workbench, batches: Batches, tolerance: float, seed: int) -> Reference:
    """Train the FP32 reference (TF32 off) in every order and keep what the others are judged against.

    Raises:
        TuneError: the reference itself gives NaN or infinity.
    """
    fp32 = Candidate("fp32")
    with training(bench, fp32):
        initial = initial_loss(bench, batches)
    judged, losses = _Judged(bench, MEMORISED * initial), list[float]()

    def after_step(loss: torch.Tensor) -> bool:
        losses.append(loss.item())
        return judged.after_step(loss)

    loss = _reference_loss(bench, batches, 0, seed, after_step)
    state = judged.state(loss)
    draft = Reference([loss], initial, 0.0, state, {}, tolerance, user_evaluation(bench))
    draft = _with_noise(bench, batches, draft, seed, losses)
    gradients = gradients_at(bench, fp32, batches, state, seed).named
    return dataclasses.replace(draft, gradients=bench.keep("gradients", gradients))


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
        loss, _ = loss_after_training(bench, Candidate("fp32"), batches, order, seed, after_step=after_step)
    if not math.isfinite(loss):
        raise TuneError(
            f"the FP32 reference reaches a loss of {loss} within {len(batches.train)} steps",
            hint="no precision setting can cure this: lower the learning rate in make_optimizer, or check the data",
        )
    return loss


def know_order(bench: Workbench, batches: Batches, reference: Reference, order: int, seed: int) -> None:
    """Train the reference in this order too, unless it was."""
    if order < len(reference.losses):
        return
    if repeats_itself(batches, reference):
        reference.losses.append(reference.losses[0])
        return
    with reference.training():
        reference.losses.append(_reference_loss(bench, batches, order, seed))


def repeats_itself(batches: Batches, reference: Reference) -> bool:
    """Whether other orders are known to tell nothing more: of one batch again and again they are the same, and what
    differs between two is what the forward draws, or in which order a GPU adds. Known once two of them were trained."""
    return batches.is_one and len(reference.losses) > 1 and reference.losses[1] == reference.losses[0]


def shaken_noise(bench: Workbench, batches: Batches, reference: Reference, seed: int) -> float:
    """How far FP32 gets from itself, in the mean over orders, where each step's weights are off by what BF16 rounds.

    Noise on the weights that the training starts from tells what a difference grows to, not what new ones in each step
    come to: a head of 150,000 words that is tied to the embedding, learning one batch by heart on an H200, ended within
    0.01 % after the one and within 2.4 % after the other, and 0.6 % off in TF32. Rounding without a direction is no
    reason to refuse a candidate, so what it does to the loss is what the loss cannot tell. Worked out once.
    """
    if reference.shaken:
        return reference.shaken[0]

    def gap(order: int) -> float:
        know_order(bench, batches, reference, order, seed)
        with reference.training(), eager(bench), shaken(bench, SHAKEN_BY, seed + order):
            loss = _loss_of_shaken(bench, batches, order, seed)
        return reference.gap(order, loss)

    first = gap(0)
    is_all = abs(first) < CALM * reference.tolerance or not math.isfinite(first)
    reference.shaken.append(_noise_of([first]) if is_all else _noise_of([first, *map(gap, range(1, NUM_ORDERS))]))
    return reference.shaken[0]


def _loss_of_shaken(bench: Workbench, batches: Batches, order: int, seed: int) -> float:
    """What shaken FP32 reaches in one order; NaN, which allows nothing, where it does not run.

    FP32 and a copy of its weights may not fit, and the model may hold weights to what noise breaks: a covariance is
    positive definite. That is no mistake of the candidate's that is judged.
    """
    try:
        return loss_after_training(bench, Candidate("fp32"), batches, order, seed)[0]
    except torch.OutOfMemoryError:
        return math.nan
    except Exception as error:
        if is_fatal(error):
            raise
        return math.nan


def _with_noise(
    bench: Workbench, batches: Batches, reference: Reference, seed: int, losses: Sequence[float]
) -> Reference:
    """The reference with its noise, by the largest noise on the weights that the model trains with."""
    broken_by = ""
    for size in (PERTURBATION, *WEAKER):
        try:
            noise = _noise(bench, batches, reference, seed, losses, size)
        except _BrokenError as broken:
            broken_by = broken_by or str(broken)
        else:
            return dataclasses.replace(reference, noise=noise, noise_size=size, broken_by=broken_by)
    return dataclasses.replace(reference, noise_size=0.0, broken_by=broken_by)


class _BrokenError(Exception):
    """The model does not train from weights with noise; the text says what it does instead."""


def _noise(
    bench: Workbench, batches: Batches, reference: Reference, seed: int, losses: Sequence[float], size: float
) -> float:
    """How far the reference gets from itself with another random seed and weights off by noise of a relative size,
    which is less than FP16 rounds.

    Training that amplifies such a difference tells nothing about rounding: the same bound that candidates are held to
    (the upper end of the mean gap's interval) is worked out for it. ``losses`` are those of the reference's steps:
    where half of the first run stays clearly close to them, the rest of it is left out.

    Raises:
        _BrokenError: the model raises, or its loss is not finite.
    """
    names = [name for name, _ in bench.model.named_parameters()]
    state = perturb(bench.initial, names, size, seed, bench.device.torch) if size else None
    parting = Parting(losses, reference.scale(0), CLEAR * CALM * reference.tolerance)

    def is_clear(loss: torch.Tensor) -> bool:
        parting.add(loss.item())
        return parting.is_clear

    def gap(order: int) -> float:
        know_order(bench, batches, reference, order, seed)
        loss = _loss_off(bench, batches, order, seed + 1000, state, None if order else is_clear)
        return reference.gap(order, loss)

    first = gap(0)
    if parting.is_clear:
        return parting.foreseen
    if abs(first) < CALM * reference.tolerance:
        return abs(first)
    know_order(bench, batches, reference, 1, seed)
    if repeats_itself(batches, reference):
        return abs(first)
    return _noise_of([first, *(gap(order) for order in range(1, NUM_ORDERS))])


def _loss_off(
    bench: Workbench,
    batches: Batches,
    order: int,
    seed: int,
    state: dict[str, torch.Tensor] | None,
    after_step: Callable[[torch.Tensor], bool] | None,
) -> float:
    """What FP32 reaches from weights that are off.

    Raises:
        _BrokenError: it raises, or the loss is not finite.
    """
    try:
        loss, _ = loss_after_training(bench, Candidate("fp32"), batches, order, seed, state, after_step)
    except Exception as error:
        if is_fatal(error):
            raise
        raise _BrokenError(plain_reason(error, place_of(error))) from None
    if not math.isfinite(loss):
        raise _BrokenError(f"its loss is {loss}")
    return loss


def _noise_of(gaps: Sequence[float]) -> float:
    """What gaps of FP32 to itself say that a gap may be."""
    if not all(map(math.isfinite, gaps)):
        return 0.0
    return max(*map(abs, gaps), upper_bound(gaps), upper_bound([-g for g in gaps]))


def upper_bound(gaps: Sequence[float]) -> float:
    """Upper end of the one-sided 95 % interval of the mean of three paired gaps (Student's t); a single gap itself."""
    if len(gaps) == 1:
        return gaps[0]
    return statistics.fmean(gaps) + T_95_TWO_DEGREES * statistics.stdev(gaps) / math.sqrt(len(gaps))
