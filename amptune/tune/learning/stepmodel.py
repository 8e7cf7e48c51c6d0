"""What measured steps teach about the cost model: a Bayesian linear model of measured minus predicted step time.

One weight for each value of each choice, one for the choices of a group that run much the same kernels (both halves,
or FP8 with all its scalings), one for all plans, one for those whose loss is scaled, and two for each two
groups that a tensor links: what they take beyond the sum where both are in 16 bits, and where their formats differ.
Casts are priced by size alone, and kernels that follow one another share caches, launches and fusions, so links are off
by what no single group is.

Before anything is measured the weights are zero with a spread that says how far the table may be off; after that the
posterior says what each choice really costs, and how sure that is. There are more weights than plans: everything is
worked out in the space of the plans.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from amptune.tune.allocation.encoded import Encoding, Rows

Point = Mapping[str, str]
Feature = tuple[str, str]
"""Name of a choice and one of its values."""

TABLE_ERROR = 0.2
"""Prior spread of a weight, as a share of what the table says the choice costs."""
ALIKE = 0.75
"""Share of a weight's variance that it has in common with the choices of its group that run much the same kernels. Set,
not fitted: simulated searches in which these err by themselves are no worse for it (search_quality.md)."""
FLOOR = 0.05
"""Prior spread of all weights together beside that, as a share of the step: what no table knows."""
LINKED = 0.1
"""Prior spread of all links together, as a share of the step."""
SCALING = 0.05
"""Prior spread of what a loss scaler takes beyond its price, as a share of the step: it may wait for the GPU, and FP16
beside BF16 gives casts that no edge knows."""
OFFSET = 0.1
"""Prior spread of what all plans have in common, as a share of the step."""
WIDER = (1.0, 2.0, 4.0, 8.0)
"""Never narrower: that the plans so far fit says little of the choices that none of them had."""
LINKED_WIDER = (1.0, 2.0, 4.0)
NOISIER = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclasses.dataclass(frozen=True)
class Observation:
    """One measured plan: its point, measured minus predicted milliseconds, and how far that may be off by itself."""

    point: Point
    residual_ms: float
    noise_ms: float


class Features:
    """The columns of the linear model: a constant, the values of the choices, those that are alike, the links, and the
    loss scaler."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.left, self.right = encoding.pairs.T
        self.num_values = int(encoding.starts[-1])
        self.alike = encoding.alike()
        self._links = 1 + self.num_values + self.alike.shape[1]
        self.count = self._links + 2 * len(self.left) + 1

    def of(self, rows: Rows) -> np.ndarray:
        """One row of features for each row of a space."""
        formats = self.encoding.formats(rows)
        left, right = formats[:, self.left], formats[:, self.right]
        ones, scaled = np.ones((len(rows), 1)), self.encoding.is_scaled(rows)[:, None]
        values = self.encoding.weighed(rows)
        return np.concatenate(
            [ones, values, values @ self.alike, (left > 0) & (right > 0), left != right, scaled], axis=1
        )

    def of_values(self, weights: np.ndarray) -> np.ndarray:
        """The weights of the values of the choices, without the constant."""
        own, shared = weights[1 : 1 + self.num_values], weights[1 + self.num_values : self._links]
        found: np.ndarray = own + self.alike @ shared
        return found

    def of_all(self, weights: np.ndarray) -> float:
        """The weight of what all plans have in common."""
        return float(weights[0])

    def of_scaling(self, weights: np.ndarray) -> float:
        """The weight of the loss scaler."""
        return float(weights[-1])

    def indicators(self, rows: Rows) -> tuple[np.ndarray, ...]:
        """Whether each group's output is in FP32, in BF16, in FP16, and in 16 bits."""
        formats = self.encoding.formats(rows)
        return (*((formats == index).astype(float) for index in range(3)), (formats > 0).astype(float))

    def link_matrices(self, weights: np.ndarray) -> list[np.ndarray]:
        """The weights of the links as quadratic forms of the ``indicators``, up to a constant."""
        both, differ = weights[self._links : -1].reshape(2, -1)
        size = len(self.encoding.model.space.module_groups())
        of_both, of_equal = np.zeros((size, size)), np.zeros((size, size))
        of_both[self.left, self.right] = both
        of_equal[self.left, self.right] = -differ
        return [of_equal, of_equal, of_equal, of_both]

    def spreads(self, costs: Mapping[Feature, float], step_ms: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
        """Prior spreads of the weights of choices, and of links; each zero where the other is not."""
        choices, links = np.zeros(self.count), np.zeros(self.count)
        floor = FLOOR * step_ms / math.sqrt(max(1, self.num_values))
        names = zip(self.encoding.names, self.encoding.values, strict=True)
        known = [costs.get((name, value), 0.0) for name, values in names for value in values]
        choices[0] = offset * step_ms
        errors = TABLE_ERROR * np.array([_finite(ms) for ms in known])
        has_like = self.alike.any(axis=1)
        own = np.where(has_like, math.sqrt(1 - ALIKE), 1.0) * errors
        members = self.alike / np.maximum(1, self.alike.sum(axis=0))
        choices[1 : 1 + self.num_values] = np.hypot(own, floor)
        choices[1 + self.num_values : self._links] = math.sqrt(ALIKE) * (errors @ members)
        choices[-1] = SCALING * step_ms
        links[self._links : -1] = LINKED * step_ms / math.sqrt(max(1, 2 * len(self.left)))
        return choices, links


@dataclasses.dataclass(frozen=True)
class StepModel:
    """The posterior over the weights, in milliseconds.

    ``noise_ms`` is what a measured step is off by beyond the weights: clocks, and costs that do not add up.
    """

    features: Features
    prior: np.ndarray
    design: np.ndarray
    residuals: np.ndarray
    noises: np.ndarray
    noise_ms: float
    mean: np.ndarray
    root: np.ndarray
    """Inverse of the Cholesky factor of the covariance of the residuals."""

    def corrections(self, rows: Rows, weights: np.ndarray | None = None) -> np.ndarray:
        """Milliseconds to add to the predicted step of each row, by the mean or by sampled weights."""
        found: np.ndarray = self.features.of(rows) @ (self.mean if weights is None else weights)
        return found

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Weights drawn from the posterior: drawn from the prior, and corrected by what they miss of the data."""
        drawn = self.prior * rng.standard_normal(len(self.prior))
        missed = self.residuals - self.design @ drawn - self.noises * rng.standard_normal(len(self.noises))
        found: np.ndarray = drawn + self._carried(missed)
        return found

    def differences(self, rows: Rows, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the milliseconds that each row takes beyond ``other``, table aside."""
        beyond = self.features.of(rows) - self.features.of(other[None])
        scaled = beyond * self.prior
        known = scaled @ (self.root @ (self.design * self.prior)).T
        variance = (scaled**2).sum(axis=1) - (known**2).sum(axis=1)
        return beyond @ self.mean, np.sqrt(np.maximum(variance, 0.0))

    def _carried(self, residuals: np.ndarray) -> np.ndarray:
        return carried(self.prior, self.design, self.root, residuals)


def carried(prior: np.ndarray, design: np.ndarray, root: np.ndarray, residuals: np.ndarray) -> np.ndarray:
    """The weights that residuals ask for."""
    found: np.ndarray = prior**2 * (design.T @ (root.T @ (root @ residuals)))
    return found


def fit_model(
    features: Features,
    costs: Mapping[Feature, float],
    step_ms: float,
    measured: Sequence[Observation],
    noise_ms: float,
    offset: float = OFFSET,
    scales: Sequence[float] = WIDER,
) -> StepModel:
    """The posterior after the measured residuals.

    Args:
        features: the columns.
        costs: (name, value) -> milliseconds that the table gives it, for the prior; missing ones get the floor alone.
        step_ms: a typical step.
        measured: the plans so far.
        noise_ms: standard deviation of a measured step.
        offset: prior spread of what all plans have in common, as a share of the step.
        scales: factors that the prior spread of choices may have.
    """
    encoding = features.encoding
    design = features.of(encoding.rows(seen.point for seen in measured))
    residuals = np.array([seen.residual_ms for seen in measured])
    noises = np.array([seen.noise_ms for seen in measured])
    choices, links = features.spreads(costs, step_ms, offset)
    wider, linked, noisier = _calibrated(design * choices, design * links, residuals, noises, scales)
    prior = wider * choices + linked * links
    scaled = design * prior
    total = scaled @ scaled.T + np.diag((noisier * noises) ** 2)
    root = np.linalg.inv(np.linalg.cholesky(total)) if len(measured) else np.zeros((0, 0))
    mean = carried(prior, design, root, residuals)
    return StepModel(features, prior, design, residuals, noisier * noises, noisier * noise_ms, mean, root)


def _calibrated(
    choices: np.ndarray, links: np.ndarray, residuals: np.ndarray, noises: np.ndarray, scales: Sequence[float]
) -> tuple[float, float, float]:
    """Factors on the prior's spreads and on the noises under which the residuals are likeliest.

    A table that is wrong by more than was thought must not leave the posterior sure of itself. The noise grows where
    the costs do not add up. All factors are themselves expected near 1.
    """
    if not len(residuals):
        return 1.0, 1.0, 1.0
    best, found = -math.inf, (1.0, 1.0, 1.0)
    of_choices, of_links = choices @ choices.T, links @ links.T
    for wider, linked, noisier in itertools.product(scales, LINKED_WIDER, NOISIER):
        total = wider**2 * of_choices + linked**2 * of_links + noisier**2 * np.diag(noises**2)
        _, logarithm = np.linalg.slogdet(total)
        likelihood = -0.5 * (residuals @ np.linalg.solve(total, residuals) + logarithm)
        likelihood -= 0.5 * (math.log(wider) ** 2 + math.log(linked) ** 2 + math.log(noisier) ** 2)
        if likelihood > best:
            best, found = likelihood, (wider, linked, noisier)
    return found


def _finite(value: float) -> float:
    return abs(value) if math.isfinite(value) else 0.0
