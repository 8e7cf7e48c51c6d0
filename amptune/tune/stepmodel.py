"""What measured steps teach about the cost model: a Bayesian linear model of measured minus predicted step time.

One weight for each value of each choice, and one for all plans. Before anything is measured
the weights are zero with a spread that says how far the table may be off; after that the posterior says what each
choice really costs, and how sure that is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

Point = Mapping[str, str]
Feature = tuple[str, str]
"""Name of a choice and one of its values."""

TABLE_ERROR = 0.2
"""Prior spread of a weight, as a share of what the table says the choice costs."""
FLOOR = 0.05
"""Prior spread of all weights together beside that, as a share of the step: what no table knows."""
WIDER = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
NOISIER = (1.0, 2.0, 4.0, 8.0, 16.0)
OFFSET = 0.1
"""Prior spread of what all plans have in common, as a share of the step."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """One measured plan: its point, measured minus predicted milliseconds, and how far that may be off by itself."""

    point: Point
    residual_ms: float
    noise_ms: float


@dataclasses.dataclass(frozen=True)
class StepModel:
    """The posterior over the weights; ``mean`` and ``root`` (a square root of the covariance) are in milliseconds.

    ``noise_ms`` is what a measured step is off by beyond the weights: clocks, and costs that do not add up.
    """

    features: Mapping[Feature, int]
    mean: np.ndarray
    root: np.ndarray
    noise_ms: float

    def correction(self, point: Point, weights: np.ndarray | None = None) -> float:
        """Milliseconds to add to the predicted step of a point, by the mean or by sampled weights."""
        row = _row(self.features, point)
        return float(row @ (self.mean if weights is None else weights))

    def weight(self, feature: Feature, weights: np.ndarray | None = None) -> float:
        """Milliseconds that one value adds to what the table says."""
        index = self.features.get(feature)
        return 0.0 if index is None else float((self.mean if weights is None else weights)[index])

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Weights drawn from the posterior."""
        drawn: np.ndarray = self.mean + self.root @ rng.standard_normal(len(self.mean))
        return drawn

    def difference(self, point: Point, other: Point) -> tuple[float, float]:
        """Mean and standard deviation of the milliseconds that ``point`` takes beyond ``other``, table aside."""
        row = _row(self.features, point) - _row(self.features, other)
        return float(row @ self.mean), float(np.linalg.norm(row @ self.root))

    def spread(self, name: str) -> float:
        """Largest posterior standard deviation among the values of a choice: how little is known of it."""
        indices = [index for (owner, _), index in self.features.items() if owner == name]
        return max((float(np.linalg.norm(self.root[index])) for index in indices), default=0.0)


def fit_model(
    choices: Mapping[str, tuple[str, ...]],
    costs: Mapping[Feature, float],
    step_ms: float,
    measured: Sequence[Observation],
    noise_ms: float,
) -> StepModel:
    """The posterior after the measured residuals.

    Args:
        choices: name of each choice -> its values.
        costs: (name, value) -> milliseconds that the table gives it, for the prior; missing ones get the floor alone.
        step_ms: a typical step.
        measured: the plans so far.
        noise_ms: standard deviation of a measured step.
    """
    features = {
        feature: index + 1
        for index, feature in enumerate((name, value) for name, values in choices.items() for value in values)
    }
    floor = FLOOR * step_ms / math.sqrt(max(1, len(features)))
    spreads = [OFFSET * step_ms]
    spreads += [math.hypot(TABLE_ERROR * _finite(costs.get(feature, 0.0)), floor) for feature in features]
    prior = np.array(spreads)
    rows = np.array([_row(features, seen.point) for seen in measured]).reshape(len(measured), len(prior))
    residuals = np.array([seen.residual_ms for seen in measured])
    noises = np.array([seen.noise_ms for seen in measured])
    wider, noisier = _calibrated(rows * prior, residuals, noises)
    return _posterior(features, rows, residuals, wider * prior, noisier * noises, noisier * noise_ms)


def _posterior(
    features: Mapping[Feature, int],
    rows: np.ndarray,
    residuals: np.ndarray,
    spread: np.ndarray,
    noises: np.ndarray,
    noise_ms: float,
) -> StepModel:
    # In units of the prior's spreads and of the noise, so that the system to solve is well conditioned.
    design, target = rows * spread / noises[:, None], residuals / noises
    values, vectors = np.linalg.eigh(np.eye(len(spread)) + design.T @ design)
    mean = spread * (vectors @ ((vectors.T @ (design.T @ target)) / values))
    return StepModel(features, mean, spread[:, None] * vectors / np.sqrt(values), noise_ms)


def _calibrated(design: np.ndarray, residuals: np.ndarray, noises: np.ndarray) -> tuple[float, float]:
    """Factors on the prior's spread and on the noises under which the residuals are likeliest.

    A table that is wrong by more than was thought must not leave the posterior sure of itself. The noise grows where
    the costs do not add up. Both factors are themselves expected near 1.
    """
    best, found = -math.inf, (1.0, 1.0)
    covariance = design @ design.T
    for wider in WIDER:
        for noisier in NOISIER:
            total = wider**2 * covariance + noisier**2 * np.diag(noises**2)
            _, logarithm = np.linalg.slogdet(total)
            likelihood = -0.5 * (residuals @ np.linalg.solve(total, residuals) + logarithm)
            likelihood -= 0.5 * (math.log(wider) ** 2 + math.log(noisier) ** 2)
            if likelihood > best:
                best, found = likelihood, (wider, noisier)
    return found


def _row(features: Mapping[Feature, int], point: Point) -> np.ndarray:
    row = np.zeros(len(features) + 1)
    row[0] = 1.0
    for feature in point.items():
        index = features.get(feature)
        if index is not None:
            row[index] = 1.0
    return row


def _finite(value: float) -> float:
    return abs(value) if math.isfinite(value) else 0.0
