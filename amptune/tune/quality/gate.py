"""The gate on gradients: does every parameter get the gradient that FP32 gives it at the same weights?

The bar is a cosine of 0.98 and a norm within 10 %. Where FP32 itself does not reach it after a change of the weights by
as little as the candidate's format rounds them (deep networks of BatchNorm near their start are like that: two
neighbouring sets of weights have gradients that point elsewhere), the bar is what FP32 reaches then, for as many
roundings as a layer makes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import torch

from amptune.core.formats import Format
from amptune.tune.quality.noise import Noise
from amptune.tune.running.recipes import Candidate

MIN_COSINE = 0.98
MAX_RATIO = 1 / 0.9
MAX_ZERO_RISE = 0.01
MIN_ZEROS = 8
"""Fewer elements that became zero are no share of anything: of a bias of 60, one is more than a percent."""
NEGLIGIBLE = 1e-4
"""A gradient whose root mean square is below this share of the model's is rounding noise around a true zero (the bias
of attention keys is one), so its direction says nothing."""
ROUNDING = 1e-5
"""Elements below this share of their tensor's root mean square are rounding noise of the FP32 reference."""
NUM_PERTURBED = 2
"""Perturbed copies of the weights that the bar is taken from."""
ROUNDINGS = 4
"""Weights, inputs, outputs and output gradients are rounded, and the perturbed reference has one of the four: what the
cosine lacks to 1 grows with their number, a deviation of the norm with its root."""
LEAST_COSINE = 0.1
"""Below it a direction says nothing, and a norm may be ten times another."""
LINEAR_COSINE = math.sqrt(0.5)
"""A bar below it allows more noise than there is signal. What a gradient has of it then no longer grows with what a
plan rounds, so it says nothing of how far from its bar it is."""

Gradients = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Bar:
    """What one parameter's gradient has to reach: cosine at least, norm ratio within 1 / ``ratio`` and ``ratio``."""

    cosine: float = MIN_COSINE
    ratio: float = MAX_RATIO


PLAIN_BAR = Bar()


@dataclasses.dataclass(frozen=True)
class GradientGate:
    """How the gradients at the same weights compare: the lowest cosine of a parameter, and what failed.

    ``failures`` are sentences, ``failing`` the names of the parameters they are about. ``noise`` is that of all
    directions; None where no gradient can be compared, or one is missing or not finite.
    """

    worst_cosine: float
    failures: tuple[str, ...]
    failing: tuple[str, ...] = ()
    noise: Noise | None = None

    @property
    def passed(self) -> bool:
        """Whether every parameter's gradient is close enough."""
        return not self.failures


def compare_gradients(reference: Gradients, found: Gradients, bars: Mapping[str, Bar] | None = None) -> GradientGate:
    """Cosine, norm ratio and share of zeros of every parameter's gradient against the reference's.

    ``bars``: what each has to reach; the plain bar where it names none.
    """
    failures: dict[str, list[str]] = {}
    worst_cosine = 1.0
    shares: list[float] = []
    is_whole = True
    floor = NEGLIGIBLE * _root_mean_square(reference.values())
    for name, expected in reference.items():
        actual = found.get(name)
        if actual is None:
            failures[name] = [f"{name} gets no gradient"]
            is_whole = False
            continue
        if not bool(torch.isfinite(actual).all()):
            failures[name] = [f"the gradient of {name} is not finite"]
            is_whole = False
            continue
        if _root_mean_square([expected]) <= floor:
            continue
        cosine, ratio, zero_rise = _compare(expected, actual)
        worst_cosine = min(worst_cosine, cosine)
        bar = (bars or {}).get(name, PLAIN_BAR)
        if bar.cosine >= LINEAR_COSINE:
            shares.append((_tangent(max(cosine, LEAST_COSINE)) / _tangent(bar.cosine)) ** 2)
        failures[name] = _gradient_failures(name, cosine, ratio, zero_rise, bar)
    sentences = tuple(sentence for found in failures.values() for sentence in found)
    failing = tuple(name for name, found in failures.items() if found)
    noise = Noise(max(shares), statistics.median(shares)) if shares and is_whole else None
    return GradientGate(worst_cosine, sentences, failing, noise)


def bars_of(reference: Gradients, perturbed: Iterable[Gradients]) -> dict[str, Bar]:
    """The bar of each parameter, by the reference's gradients at weights and at several perturbed copies of them."""
    found: dict[str, list[tuple[float, float, float]]] = {n: [] for n, expected in reference.items() if expected.any()}
    for gradients in perturbed:  # one set at a time is in memory
        for name in found.keys() & gradients.keys():
            # NaN says that noise breaks the model, not where the bar is.
            if bool(torch.isfinite(gradients[name]).all()):
                found[name].append(_compare(reference[name], gradients[name]))
    return {name: _bar(compared) for name, compared in found.items()}


def _bar(found: Sequence[tuple[float, float, float]]) -> Bar:
    """What the worst of the perturbed gradients reaches, for all roundings of a layer.

    A deviation by an angle is one by a vector of the angle's tangent, which may also lie along the gradient: the norm
    is given what the angle is given beyond the plain bar.
    """
    worst = min((cosine for cosine, _, _ in found), default=1.0)
    drift = max((abs(math.log(ratio)) for _, ratio, _ in found if 0 < ratio < math.inf), default=0.0)
    cosine = min(MIN_COSINE, 1 - ROUNDINGS * (1 - worst))
    along = _tangent(max(cosine, LEAST_COSINE)) - _tangent(MIN_COSINE)
    return Bar(cosine, max(MAX_RATIO + along, math.exp(math.sqrt(ROUNDINGS) * drift)))


def _tangent(cosine: float) -> float:
    return math.sqrt(max(0.0, 1 / cosine**2 - 1))


def rounding_of(candidate: Candidate) -> float:
    """Relative half-ulp of the coarsest of TF32, FP16 and BF16 in a candidate; FP8 does not lower the bar further."""
    formats = {candidate.low, Format.TF32 if candidate.tf32 else None}
    if candidate.plan is not None:
        formats |= {Format.BF16 if site.format.is_fp8 else site.format for site in candidate.plan.sites.values()}
    return max((f.epsilon / 2 for f in formats if f is not None and f is not Format.FP32), default=0.0)


def perturb(
    state: Mapping[str, torch.Tensor], names: Iterable[str], relative: float, seed: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """A copy of a state with normal noise of the given relative size on the parameters ``names``.

    ``device``: where the noise is made, whatever device the state is kept on.
    """
    found = dict(state)
    for index, name in enumerate(names):
        value = found[name]
        if value.is_floating_point():
            generator = torch.Generator(device).manual_seed(seed + index)
            noise = torch.randn(value.shape, generator=generator, device=device, dtype=value.dtype)
            found[name] = (value.to(device) * (1 + relative * noise)).to(value.device)
    return found


def _compare(expected: torch.Tensor, actual: torch.Tensor) -> tuple[float, float, float]:
    a, b = expected.to(actual.device).double().flatten(), actual.double().flatten()
    norm_a, norm_b = a.norm().item(), b.norm().item()
    cosine = (a @ b).item() / (norm_a * norm_b) if norm_a * norm_b > 0 else 0.0
    # What is a true zero up to FP32's rounding may well come out as an exact one.
    counts = a.abs() > ROUNDING * norm_a / math.sqrt(a.numel())
    zeros = int(((b == 0) & counts).sum())
    zero_rise = zeros / a.numel() if zeros >= MIN_ZEROS else 0.0
    return cosine, norm_b / norm_a if norm_a else math.inf, zero_rise


def _gradient_failures(name: str, cosine: float, ratio: float, zero_rise: float, bar: Bar) -> list[str]:
    failures = []
    if cosine < bar.cosine:
        failures.append(
            f"the gradient of {name} points elsewhere: cosine {cosine:.3f}, at least {bar.cosine:.3g} is needed"
        )
    if not 1 / bar.ratio <= ratio <= bar.ratio:
        allowed = f"{1 / bar.ratio:.2g} to {bar.ratio:.2g}"
        failures.append(f"the gradient of {name} has {ratio:.3g} times its norm, {allowed} is allowed")
    if zero_rise > MAX_ZERO_RISE:
        failures.append(f"{zero_rise:.1%} of the gradient of {name} underflow to zero")
    return failures


def _root_mean_square(tensors: Iterable[torch.Tensor]) -> float:
    total, count = 0.0, 0
    for tensor in tensors:
        total += tensor.double().square().sum().item()
        count += tensor.numel()
    return math.sqrt(total / count) if count else 0.0
