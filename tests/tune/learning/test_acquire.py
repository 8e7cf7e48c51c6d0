"""What measured steps teach of links, and the plan that the next trial may gain most from."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from amptune.core.choice import BF16, FP16, FP32
from amptune.core.formats import Format
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.encoded import Encoding
from amptune.tune.choices.space import Group, Space
from amptune.tune.learning.acquire import Acquisition, expected_improvement, smaller_of
from amptune.tune.learning.stepmodel import Features, Observation, StepModel, fit_model
from amptune.tune.learning.validity import Tried, learn_validity

NAMES = tuple("abcdef")
NOISE = 0.01
Surprise = Callable[[Mapping[str, str]], float]


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    """A chain of six groups that are faster in BF16 by the table, with a cast between formats."""
    groups = tuple(Group(name, (name,), "module", ("swap",), (FP32, BF16)) for name in NAMES)
    table = CostTable(
        {name: {FP32: SiteCost(2.0), BF16: SiteCost(1.0)} for name in NAMES},
        {frozenset((Format.FP32, Format.BF16)): CastPrice(0.1, 0.0)},
    )
    edges = [Edge((a,), (b,), 1000) for a, b in itertools.pairwise(NAMES)]
    return Encoding(CostModel(Space(groups, tf32=False, channels_last=False), table, edges))


def point(encoding: Encoding, low: str) -> dict[str, str]:
    """The plan with these groups in BF16."""
    return encoding.model.space.point(dict.fromkeys(low, "bf16"))


def fitted(encoding: Encoding, plans: Sequence[str], surprise: Surprise) -> StepModel:
    """The posterior after plans that take ``surprise`` beyond the table."""
    points = [point(encoding, plan) for plan in plans]
    seen = [Observation(p, surprise(p), NOISE) for p in points]
    return fit_model(Features(encoding), encoding.model.costs(), 20.0, seen, NOISE)


def coupled(p: Mapping[str, str]) -> float:
    """``b`` and ``c`` disturb one another in 16 bits."""
    return 1.5 if p["b"] == p["c"] == "bf16" else 0.0


def acquisition(encoding: Encoding, step: StepModel, best: str) -> Acquisition:
    nothing = Tried(np.zeros((0, len(NAMES)), dtype=np.int16), [])
    validity = learn_validity(encoding, nothing, nothing, np.zeros(2 * len(NAMES), dtype=bool), 0.0)
    return Acquisition(encoding, step, validity, encoding.encode(point(encoding, best)))


def test_what_two_linked_groups_take_together_is_learnt(encoding: Encoding) -> None:
    """Not from their plans alone, but from what others say of each of them."""
    step = fitted(encoding, ["", "abcdef", "acdef", "abdef", "bcdef", "abc", "bc", "b", "c", "ab"], coupled)
    rows = np.array([encoding.encode(point(encoding, plan)) for plan in ("bcd", "bde", "ace")])
    assert step.corrections(rows) == pytest.approx([1.5, 0.0, 0.0], abs=0.35)


def test_draws_agree_with_the_mean_and_the_spread(encoding: Encoding) -> None:
    step = fitted(encoding, ["", "abcdef", "abc", "bd"], coupled)
    rows = np.array([encoding.encode(point(encoding, plan)) for plan in ("abcdef", "ace", "bc")])
    more, spread = step.differences(rows, rows[0])
    rng = np.random.default_rng(0)
    drawn = np.array([step.corrections(rows, step.sample(rng)) for _ in range(4000)])
    assert (drawn - drawn[:, :1]).mean(axis=0) == pytest.approx(more, abs=0.05)
    assert (drawn - drawn[:, :1]).std(axis=0) == pytest.approx(spread, rel=0.05)


def test_the_spread_of_what_no_plan_had_stays_wide(encoding: Encoding) -> None:
    """Plans that the table predicts to the point, all with ``a`` in BF16, say nothing of ``a`` in FP32."""
    step = fitted(encoding, ["abcdef", "abcde", "abcd", "abcf", "adef", "acdf"], lambda _point: 0.0)
    best = encoding.encode(point(encoding, "abcdef"))
    seen, unseen = (encoding.encode(point(encoding, plan)) for plan in ("abcde", "bcdef"))
    _, spread = step.differences(np.array([seen, unseen]), best)
    assert spread[0] < 0.1
    assert spread[1] > 0.3


def test_links_as_quadratic_forms_are_the_features_times_the_weights(encoding: Encoding) -> None:
    step = fitted(encoding, ["", "abcdef", "abc"], coupled)
    features, weights = step.features, step.sample(np.random.default_rng(0))
    rows = np.array([encoding.encode(point(encoding, plan)) for plan in ("", "ab", "bdf", "abcdef")])
    forms = zip(features.indicators(rows), features.link_matrices(weights), strict=True)
    links = sum(((i @ matrix) * i).sum(axis=1) for i, matrix in forms)
    total = links + encoding.one_hot(rows) @ features.of_values(weights)
    expected = step.corrections(rows, weights)
    assert total - total[0] == pytest.approx(expected - expected[0])


def test_a_change_of_several_groups_is_found_where_no_single_one_gains(encoding: Encoding) -> None:
    """Casts make islands of one group slow: from FP32, two neighbours at least have to go down together."""
    table = dataclasses.replace(encoding.model.table, casts={frozenset((Format.FP32, Format.BF16)): CastPrice(0.7, 0)})
    dear = Encoding(dataclasses.replace(encoding.model, table=table))
    plans = ["", *NAMES, *(a + b for a, b in itertools.combinations(NAMES, 2) if ord(b) - ord(a) > 1)]
    known = acquisition(dear, fitted(dear, plans, lambda _point: 0.0), "")
    starts = np.array([known.best])
    rows, gains = known.candidates(np.random.default_rng(0), starts)
    singles = known.gains(known.encoding.single_changes(known.best[None])[0])
    assert gains[0] > 4 * singles.max()
    assert known.encoding.decode(rows[0]) == point(dear, "abcdef")
    assert list(gains) == sorted(gains, reverse=True)


def test_no_candidate_keeps_more_bytes_than_allowed(encoding: Encoding) -> None:
    known = acquisition(encoding, fitted(encoding, ["", "abcdef"], lambda _point: 0.0), "abcdef")
    limit = encoding.model.bytes(point(encoding, "abcdef")) * 1.01
    bound = dataclasses.replace(known, max_bytes=limit)
    rows, gains = bound.candidates(np.random.default_rng(0), known.best[None])
    assert (encoding.bytes(rows[gains > 0]) <= limit).all()


def test_the_smaller_of_two_is_what_draws_show() -> None:
    rng = np.random.default_rng(0)
    means, spreads = np.array([[1.0, 0.5], [2.0, 2.0], [-1.0, 3.0]]).T, np.array([[0.5, 1.0], [0.1, 0.7], [1.0, 0.2]]).T
    drawn = means[:, :, None] + spreads[:, :, None] * rng.standard_normal((2, 3, 200_000))
    smaller = drawn.min(axis=0)
    mean, spread = smaller_of(means[0], spreads[0], means[1], spreads[1])
    assert mean == pytest.approx(smaller.mean(axis=1), abs=0.01)
    assert spread == pytest.approx(smaller.std(axis=1), abs=0.01)
    mean, spread = smaller_of(np.array([1.0, -np.inf]), np.zeros(2), np.array([2.0, 1.0]), np.zeros(2))
    assert mean.tolist() == [1.0, -np.inf]
    assert spread.tolist() == [0.0, 0.0]


def test_the_expected_improvement_is_the_mean_above_zero() -> None:
    draws = np.random.default_rng(0).normal(size=200_000)
    saved, spread = np.array([1.0, -1.0, 0.3, -2.0, 3.0, math.inf]), np.array([0.5, 1.0, 2.0, 0.0, 0.0, 1.0])
    expected = [np.maximum(0.0, m + s * draws).mean() for m, s in zip(saved[:-1], spread[:-1], strict=True)]
    assert expected_improvement(saved, spread) == pytest.approx([*expected, 0.0], abs=0.01)


def test_what_one_half_takes_says_what_the_other_takes() -> None:
    """They run much the same kernels: after BF16 was slower than the table has it, FP16 is expected to be so too."""
    choices = (FP32, BF16, FP16)
    groups = tuple(Group(name, (name,), "module", ("swap",), choices) for name in NAMES)
    table = CostTable({name: {FP32: SiteCost(40), BF16: SiteCost(20), FP16: SiteCost(20)} for name in NAMES}, {})
    halves = Encoding(CostModel(Space(groups, tf32=False, channels_last=False), table, []))
    step = fitted(halves, ["", "a", "ab"], lambda p: 4.0 * (p["a"] == "bf16"))
    row = {name: halves.encode(halves.model.space.point(p)) for name, p in
           (("bf16", {"a": "bf16"}), ("fp16", {"a": "fp16"}), ("fp32", {}))}  # fmt: skip
    more, spread = step.differences(np.array([row["fp16"], row["fp32"]]), row["bf16"])
    assert more == pytest.approx([0.0, -4.0], abs=1.0)
    assert spread[0] < 4.0, "0.2 of 20 ms for each of two would be 5.7"
