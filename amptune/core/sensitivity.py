"""How much each choice would disturb each site, as one reference pass with gradients shows it. Pure Python."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from amptune.core.choice import Choice
from amptune.core.scaler import GradientStep

NOTHING = GradientStep(-math.inf)
"""Magnitudes of no tensor at all."""


@dataclasses.dataclass(frozen=True)
class RoundingError:
    """Relative error (norm of the difference over norm of the exact value) that a choice adds at one site alone."""

    output: float
    input_grad: float = 0.0
    weight_grad: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the squares: noise over signal of the three, which adds up over sites."""
        return self.output**2 + self.input_grad**2 + self.weight_grad**2


@dataclasses.dataclass(frozen=True)
class SiteSensitivity:
    """What one site's tensors look like, and what each choice does to them.

    Attributes:
        errors: choice -> error; those that do not survive are not among them.
        vetoes: choice -> why it must not be used: what overflows, and by how much.
        activations, weights, gradients: magnitudes of its inputs and outputs, of its parameters, and of the gradient
            of its output.
    """

    errors: Mapping[Choice, RoundingError] = dataclasses.field(default_factory=dict)
    vetoes: Mapping[Choice, str] = dataclasses.field(default_factory=dict)
    activations: GradientStep = NOTHING
    weights: GradientStep = NOTHING
    gradients: GradientStep = NOTHING


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Every measured site, and the loss scale that FP16 gradients were taken to have."""

    sites: Mapping[str, SiteSensitivity] = dataclasses.field(default_factory=dict)
    loss_scale: float = 1.0

    def error(self, site: str, choice: Choice) -> float:
        """Total error of a choice at a site; zero where it was not measured."""
        found = self.sites.get(site)
        return found.errors[choice].total if found and choice in found.errors else 0.0

    def veto(self, site: str, choice: Choice) -> str:
        """Why a choice must not be made at a site; empty when it may."""
        found = self.sites.get(site)
        return found.vetoes.get(choice, "") if found else ""

    def total(self, choices: Mapping[str, Choice]) -> float:
        """Error of an assignment of sites to choices."""
        return sum(self.error(site, choice) for site, choice in choices.items())

    def to_json(self) -> dict[str, Any]:
        """A form that JSON holds."""
        return {
            "loss_scale": self.loss_scale,
            "sites": {
                name: {
                    "errors": {c.label: list(dataclasses.astuple(e)) for c, e in site.errors.items()},
                    "vetoes": {c.label: why for c, why in site.vetoes.items()},
                    "magnitudes": [_to_json(s) for s in (site.activations, site.weights, site.gradients)],
                }
                for name, site in self.sites.items()
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivity:
        """What ``to_json`` gave."""
        sites = {
            name: SiteSensitivity(
                {Choice.parse(label): RoundingError(*values) for label, values in site["errors"].items()},
                {Choice.parse(label): why for label, why in site["vetoes"].items()},
                *(_from_json(step) for step in site["magnitudes"]),
            )
            for name, site in data["sites"].items()
        }
        return cls(sites, data["loss_scale"])


def joined(steps: Iterable[GradientStep]) -> GradientStep:
    """Magnitudes of several tensors taken together."""
    amax, counts = -math.inf, dict[int, int]()
    for step in steps:
        amax = max(amax, step.amax_log2)
        for exponent, count in step.exponents.items():
            counts[exponent] = counts.get(exponent, 0) + count
    return GradientStep(amax, counts)


def _to_json(step: GradientStep) -> dict[str, Any]:
    amax = step.amax_log2 if math.isfinite(step.amax_log2) else ("inf" if step.amax_log2 > 0 else None)
    return {"amax_log2": amax, "exponents": {str(k): v for k, v in sorted(step.exponents.items())}}


def _from_json(data: Mapping[str, Any]) -> GradientStep:
    amax = -math.inf if data["amax_log2"] is None else float(data["amax_log2"])
    return GradientStep(amax, {int(k): v for k, v in data["exponents"].items()})
