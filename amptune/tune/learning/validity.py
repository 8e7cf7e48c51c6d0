"""How likely a plan is to train, by the plans that did and did not.

Two causes are told apart. Rounding errors add up, and beyond some limit a plan does not train: neither the limit nor
what each choice really adds is known, so both are drawn many times, and draws that contradict a trial count for little:
whether its plan trained, and by how much the direction of its gradients kept or missed what the gate asks for.
And single choices may be fragile whatever the sum: those of a plan that failed are suspects, the more the fewer there
are and the more failed plans have them, until a valid plan has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from amptune.tune.allocation.encoded import Encoding, Rows
from amptune.tune.quality.noise import INDEPENDENT, Noise, Shown, shown_by

NUM_DRAWS = 400
ERROR_SPREAD = 0.5
"""Standard deviation of the logarithm of what a choice really adds over what the reference pass says."""
LIMITS = 80
"""Points of the grid of limits."""
LIMIT_AT, LIMIT_SPREAD = math.log(60.0), 1.8
"""Prior of the logarithm of the limit over the error of a plan in 16 bits, which trains as a rule. A plan in FP8 errs
about 200 times as much, and may train or not."""
FRAGILE = 0.02
"""Prior chance that a choice does not train by itself, though nothing in the reference pass says so."""
UNKNOWN = 1e-3
"""Prior chance that a plan fails for another cause."""
SWEEPS = 20
"""Of belief propagation."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """Plans that trained, or plans that did not, each with the noise of its gradients where that is known."""

    rows: Rows
    noise: Sequence[Noise | None]


@dataclasses.dataclass(frozen=True)
class Validity:
    """What is known of which plans train.

    Attributes:
        encoding: the rows.
        forbidden: by column of ``one_hot``, whether a choice is vetoed or was seen to fail by itself.
        suspicion: by column, the chance that a choice is fragile.
        shares: for each plan that failed, the chance that it was this column; together what the limit leaves.
        errors: draws of what each column adds to the error; one row a draw.
        limits: logarithms of limits, increasing.
        above: for each draw, the chance that it is the true one and the limit is at least that of the column.
    """

    encoding: Encoding
    forbidden: np.ndarray
    suspicion: np.ndarray
    shares: np.ndarray
    errors: np.ndarray
    limits: np.ndarray
    above: np.ndarray

    def probability(self, rows: Rows) -> np.ndarray:
        """The chance that each row trains."""
        one_hot = self.encoding.one_hot(rows)
        within = _within(self.limits, self.above, one_hot @ self.errors.T)
        sound = np.exp(one_hot @ np.log1p(-self.suspicion))
        # One of the suspects of a failed plan did it: who has them all fails, though none of them is very suspect.
        sound = np.minimum(sound, 1 - (one_hot @ self.shares.T).max(axis=1, initial=0.0))
        found: np.ndarray = np.where(one_hot @ self.forbidden > 0, 0.0, sound * within)
        return found

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, float, np.ndarray]:
        """A world that may be the true one: what each column adds to the error, the limit, and what is forbidden."""
        chances = self.above[:, 0] / self.above[:, 0].sum()
        draw = int(rng.choice(len(chances), p=chances))
        at_least = self.above[draw] / self.above[draw, 0]
        index = int(np.searchsorted(-at_least, -rng.random(), side="left")) - 1
        fragile = rng.random(len(self.suspicion)) < self.suspicion
        return self.errors[draw], float(np.exp(self.limits[index])), (self.forbidden > 0) | fragile


def learn_validity(
    encoding: Encoding, valid: Tried, unexplained: Tried, forbidden: np.ndarray, unit: float
) -> Validity:
    """What the trials teach.

    Args:
        encoding: the rows.
        valid: plans that trained.
        unexplained: plans that did not, for no choice that is known to fail by itself.
        forbidden: by column of ``one_hot``, whether a choice is vetoed or was seen to fail by itself.
        unit: error of a plan in 16 bits by the reference pass; 0 where nothing is known.
    """
    table = encoding.errors()
    rng = np.random.default_rng(0)
    errors = table * np.exp(ERROR_SPREAD * rng.standard_normal((NUM_DRAWS, len(table))))
    center = math.log(unit) + LIMIT_AT if unit > 0 else 0.0
    valid_hot, failed_hot = encoding.one_hot(valid.rows), encoding.one_hot(unexplained.rows)
    largest = _log(valid_hot @ errors.T).max(initial=center)
    limits = np.linspace(center - 4 * LIMIT_SPREAD, max(center + 4 * LIMIT_SPREAD, largest + 1), LIMITS)
    weights = np.exp(-0.5 * ((limits - center) / LIMIT_SPREAD) ** 2)[None].repeat(NUM_DRAWS, axis=0)
    cleared = valid_hot.any(axis=0)
    suspects = (failed_hot > 0) & ~cleared & encoding.risky
    for sums in valid_hot @ errors.T:
        weights = weights * (limits[None] >= _log(sums)[:, None])
    over = np.array([limits[None] < _log(sums)[:, None] for sums in failed_hot @ errors.T], dtype=bool)
    if len(over):
        weights = weights * _chances_without(over, suspects)
    weights = weights * _likelihood_of_noise(encoding, valid, unexplained, errors, limits)
    total = weights.sum()
    weights = weights / total if total > 0 else np.full_like(weights, 1 / weights.size)
    by_limit = np.array([float((weights * is_over).sum()) for is_over in over])
    suspicion = np.where(cleared | ~encoding.risky, 0.0, _suspicions(suspects, by_limit))
    shares = suspects * suspicion
    shares = shares * ((1 - by_limit) / np.maximum(shares.sum(axis=1), 1e-300))[:, None]
    above = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
    return Validity(encoding, forbidden, np.minimum(suspicion, 0.99), shares, errors, limits, above)


def _likelihood_of_noise(
    encoding: Encoding, valid: Tried, unexplained: Tried, errors: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """For each draw and limit, how well they explain how noisy the gradients of the plans were. A plan within the limit
    that did not train was broken by a single choice, which may make any noise."""
    of_fp8 = encoding.of_fp8
    table = encoding.errors()
    seen: list[tuple[Shown, np.ndarray, bool]] = []
    for tried, trains in ((valid, True), (unexplained, False)):
        for one_hot, noise in zip(encoding.one_hot(tried.rows), tried.noise, strict=True):
            has_fp8 = bool(2 * (one_hot * of_fp8) @ table >= one_hot @ table > 0)
            if shown := shown_by(noise, valid=trains, has_fp8=has_fp8):
                seen.append((shown, _log(errors @ one_hot)[:, None] - limits[None], trains))
    found = np.zeros((len(errors), len(limits)))
    for shown, log_ratio, trains in seen:
        log_density = np.log(shown.density(log_ratio))
        found += log_density if trains else np.where(log_ratio > 0, log_density, 0.0)
    # What plans that are much alike are off by is alike too: many of them count for less each.
    likelihood: np.ndarray = np.exp((found - found.max()) * min(1.0, INDEPENDENT / max(1, len(seen))))
    return likelihood


def _chances_without(over: np.ndarray, suspects: np.ndarray) -> np.ndarray:
    """For each draw and limit, the chance that fragile choices broke the plans that the limit did not break: one choice
    may have broken them all."""
    shape = over.shape[1:]
    flat = over.reshape(len(over), -1)
    _, first, index = np.unique(np.packbits(flat, axis=0), axis=1, return_index=True, return_inverse=True)
    chances = np.array([_chance_of(suspects[~pattern]) for pattern in flat[:, first].T])
    found: np.ndarray = chances[index].reshape(shape)
    return found


def _chance_of(suspects: np.ndarray) -> float:
    """The chance that some fragile choices are in all of these plans: of the fewest that are, found greedily."""
    chance = 1.0
    while len(suspects):
        counts = suspects.sum(axis=0)
        most = int(counts.max(initial=0))
        if most == 0:
            return chance * UNKNOWN ** len(suspects)
        common = np.flatnonzero(counts == most)
        chance *= min(0.5, FRAGILE * len(common))
        suspects = suspects[~suspects[:, common[0]]]
    return chance


def _suspicions(suspects: np.ndarray, by_limit: np.ndarray) -> np.ndarray:
    """The chance of each column to be fragile, where each failed plan has a fragile one or another cause.

    Belief propagation between plans (rows of ``suspects``) and columns: what a plan says of one of its columns depends
    on how suspect the others are for all other plans.
    """
    prior = math.log(FRAGILE / (1 - FRAGILE))
    messages = np.zeros(suspects.shape)
    for _ in range(SWEEPS):
        odds = prior + messages.sum(axis=0) - messages
        sound = np.where(suspects, -np.logaddexp(0.0, odds), 0.0)
        others = np.exp(sound.sum(axis=1, keepdims=True) - sound)
        unexplained = (1 - by_limit[:, None]) * others
        said = np.where(suspects, -np.log(np.maximum(1 - unexplained, 1e-6)), 0.0)
        messages = 0.5 * messages + 0.5 * said
    found: np.ndarray = 1 / (1 + np.exp(-(prior + messages.sum(axis=0))))
    return found


def _within(limits: np.ndarray, above: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The chance that each row's error is within the limit; ``sums`` has a column for each draw."""
    index = np.searchsorted(limits, _log(sums))
    padded = np.concatenate([above, np.zeros((len(above), 1))], axis=1)
    found: np.ndarray = padded[np.arange(len(above)), index].sum(axis=1)
    return found


def _log(sums: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.log(np.maximum(sums, 1e-300))
    return found
