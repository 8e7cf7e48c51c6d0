"""What the noise of gradients says of which plans train."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from amptune.core.choice import BF16, FP8, FP32
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CostTable, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.encoded import Encoding
from amptune.tune.choices.space import Group, Space
from amptune.tune.learning.validity import Tried, learn_validity
from amptune.tune.quality.noise import Noise

NAMES = tuple("abcdefghijkl")
EIGHT = FP8[0]
UNIT = len(NAMES) * BF16.format.epsilon**2
NOTHING = ""
Plans = Sequence[tuple[str, Noise | None]]
"""What is in FP8 of each, and how noisy its gradients are."""


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    choices = (FP32, BF16, EIGHT)
    groups = tuple(Group(name, (name,), "module", ("swap",), choices, frozenset({name})) for name in NAMES)
    table = CostTable({name: {c: SiteCost(1.0) for c in choices} for name in NAMES}, {})
    site = SiteSensitivity({c: RoundingError(c.format.epsilon) for c in choices[1:]})
    space = Space(groups, tf32=False, channels_last=False)
    return Encoding(CostModel(space, table, [], Sensitivity(dict.fromkeys(NAMES, site))))


def chance(encoding: Encoding, in_fp8: str, *, failed: Plans = (), valid: Plans = ()) -> float:
    """That a plan trains with these groups in FP8 and the others in BF16, after others did or did not."""
    known = learn_validity(
        encoding, _tried(encoding, valid), _tried(encoding, failed), np.zeros(3 * len(NAMES), dtype=bool), UNIT
    )
    return float(known.probability(_rows(encoding, [in_fp8]))[0])


def _tried(encoding: Encoding, plans: Plans) -> Tried:
    return Tried(_rows(encoding, [plan for plan, _ in plans]), [noise for _, noise in plans])


def _rows(encoding: Encoding, plans: list[str]) -> np.ndarray:
    points = [{name: EIGHT.label if name in plan else "bf16" for name in NAMES} for plan in plans]
    return encoding.rows(points)


def spread(share: float) -> Noise:
    """Gradients that are all off."""
    return Noise(share, share / 2)


def test_a_refused_plan_says_how_much_less_would_train(encoding: Encoding) -> None:
    """By passing or failing alone, half of the error may do in either case."""
    everything = "".join(NAMES)
    nearly, far = ([(everything, spread(share))] for share in (1.2, 15.0))
    of_unknown_choices = 0.98 ** len(NAMES)
    assert 0.5 < chance(encoding, "abcdef", failed=nearly) < of_unknown_choices
    assert chance(encoding, "abcdef", failed=far) < 0.05
    assert chance(encoding, NOTHING, failed=far) > 0.99 * of_unknown_choices, "16 bits hold a fraction of that error"
    without = chance(encoding, "abcdef", failed=[(everything, None)])
    assert chance(encoding, "abcdef", failed=far) < without < chance(encoding, "abcdef", failed=nearly)


def test_a_plan_far_beyond_the_bar_is_at_least_that_far(encoding: Encoding) -> None:
    """Directions at random hold no more noise than any others, so a larger error cannot be told."""
    everything = "".join(NAMES)
    two = [chance(encoding, "ab", failed=[(everything, spread(share))]) for share in (60.0, 3000.0)]
    assert two[0] == two[1] < 0.1


def test_a_valid_plan_says_how_much_more_would_train(encoding: Encoding) -> None:
    below, close = (chance(encoding, "abcdefgh", valid=[("ab", spread(share))]) for share in (0.05, 0.9))
    assert below > 0.8
    assert close < 0.3


def test_16_bits_far_below_the_bar_say_nothing_of_fp8(encoding: Encoding) -> None:
    """BERT's BF16 plans show 30 times more noise for their error than its FP8 recipes do."""
    seen = chance(encoding, "abc", valid=[(NOTHING, spread(0.05))])
    assert seen == pytest.approx(chance(encoding, "abc", valid=[(NOTHING, None)]))


def test_one_gradient_far_off_is_a_choice_that_does_not_train_by_itself(encoding: Encoding) -> None:
    """The others are as they should be: not the sum is at fault, and a plan without the culprit may have more FP8."""
    alone, sum_of_all = Noise(10.0, 0.02), spread(10.0)
    rest = "defghijkl"
    assert chance(encoding, rest, failed=[("abc", alone)]) > 5 * chance(encoding, rest, failed=[("abc", sum_of_all)])
    assert chance(encoding, "abc", failed=[("abc", alone)]) < 0.1
    assert not alone.adds_up
    assert sum_of_all.adds_up


def test_a_plan_refused_for_something_else_says_nothing_by_its_directions(encoding: Encoding) -> None:
    """Its loss, say: the noise is below the bar, and the limit was passed all the same."""
    everything = "".join(NAMES)
    seen, unseen = (chance(encoding, "ab", failed=[(everything, noise)]) for noise in (spread(0.3), None))
    assert seen == pytest.approx(unseen)
    assert not spread(0.3).adds_up


def test_many_plans_much_alike_do_not_make_sure_of_the_limit(encoding: Encoding) -> None:
    """What the sum misses of one of them it misses of all."""
    plans = [("".join(name for name in NAMES if name != left), spread(2.0)) for left in NAMES]
    some = chance(encoding, "abcd", failed=plans)
    assert 0.5 < some < 1
    assert not math.isclose(some, 1.0, abs_tol=1e-3)
