"""What trials teach about which plans train."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from amptune.core.choice import BF16, FP32
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CostTable, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.encoded import Encoding
from amptune.tune.choices.space import Group, Space
from amptune.tune.learning.validity import Tried, Validity, learn_validity
from amptune.tune.quality.noise import Noise

NAMES = tuple("abcdefghijkl")
UNIT = len(NAMES) * BF16.format.epsilon**2


@pytest.fixture(scope="module")
def encoding() -> Encoding:
    groups = tuple(Group(name, (name,), "module", ("swap",), (FP32, BF16)) for name in NAMES)
    table = CostTable({name: {FP32: SiteCost(2.0), BF16: SiteCost(1.0)} for name in NAMES}, {})
    site = SiteSensitivity({BF16: RoundingError(BF16.format.epsilon)})
    space = Space(groups, tf32=False, channels_last=False)
    return Encoding(CostModel(space, table, [], Sensitivity(dict.fromkeys(NAMES, site))))


def rows(encoding: Encoding, plans: Sequence[str]) -> np.ndarray:
    """Plans by the names of what is in BF16."""
    points = [encoding.model.space.point(dict.fromkeys(plan, "bf16")) for plan in plans]
    return np.array([encoding.encode(point) for point in points], dtype=np.int16).reshape(len(plans), len(NAMES))


def learnt(encoding: Encoding, valid: Sequence[str], failed: Sequence[str], banned: str = "") -> Validity:
    forbidden = encoding.columns_of({name: {BF16} for name in banned})
    return learn_validity(encoding, tried(rows(encoding, valid)), tried(rows(encoding, failed)), forbidden, UNIT)


def tried(plans: np.ndarray, *noise: Noise) -> Tried:
    """Plans with what is known of their gradients' noise."""
    return Tried(plans, [*noise, *[None] * (len(plans) - len(noise))])


def chances(encoding: Encoding, known: Validity, *plans: str) -> list[float]:
    found: list[float] = known.probability(rows(encoding, plans)).tolist()
    return found


def test_a_plan_in_16_bits_trains_as_a_rule_and_a_valid_one_clears_its_choices(encoding: Encoding) -> None:
    (before,) = chances(encoding, learnt(encoding, [], []), "".join(NAMES))
    after, part = chances(encoding, learnt(encoding, ["".join(NAMES)], []), "".join(NAMES), "abc")
    assert 0.6 < before < 1
    assert after == pytest.approx(1.0)
    assert part == pytest.approx(1.0)


def test_what_all_failed_plans_share_is_to_blame(encoding: Encoding) -> None:
    known = learnt(encoding, ["abc"], ["abcdef", "bdghi", "adjkl"])
    without, with_it = chances(encoding, known, "abcefghijkl", "abcd")
    assert without > 0.5 > 0.2 > with_it


def test_tf32_is_a_suspect_like_a_format(encoding: Encoding) -> None:
    """Every plan with TF32 fails, whatever its formats are."""
    space = dataclasses.replace(encoding.model.space, tf32=True)
    other = Encoding(dataclasses.replace(encoding.model, space=space))
    failed = [space.point({":tf32": "on", **dict.fromkeys(plan, "bf16")}) for plan in ("abcd", "efgh", "ijkl", "")]
    known = learn_validity(
        other,
        tried(np.zeros((0, len(other.names)), dtype=np.int16)),
        tried(np.array([other.encode(point) for point in failed])),
        np.zeros(other.starts[-1], dtype=bool),
        UNIT,
    )
    with_it, without = (other.encode(space.point({"a": "bf16", ":tf32": flag})) for flag in ("on", "off"))
    on, off = known.probability(np.array([with_it, without]))
    assert on < 0.1 < 0.7 < off


def test_a_failed_plan_is_bisected(encoding: Encoding) -> None:
    """Half of the suspects are likelier to train than all, and a culprit that is alone is sure."""
    known = learnt(encoding, [""], ["abcdefgh"])
    half, whole = chances(encoding, known, "abcd", "abcdefgh")
    assert half > 0.3 > whole
    cornered = learnt(encoding, ["abcd", "ef", "g"], ["abcdefgh"])
    culprit, other = chances(encoding, cornered, "h", "abcdefg")
    assert culprit < 0.3 < 0.6 < other


def test_more_error_than_what_failed_fails(encoding: Encoding) -> None:
    known = learnt(encoding, ["ab", "cd", "ef", "gh", "ij", "kl"], ["abcdefgh", "efghijkl", "abcdijkl"])
    small, medium, large = chances(encoding, known, "ac", "abcde", "".join(NAMES))
    assert small > 0.9
    assert large < 0.1
    assert large < medium < small


def test_what_is_banned_never_trains(encoding: Encoding) -> None:
    known = learnt(encoding, ["abc"], [], banned="d")
    assert chances(encoding, known, "ad", "bc") == pytest.approx([0.0, 1.0])
    rng = np.random.default_rng(0)
    column = int(np.flatnonzero(encoding.columns_of({"d": {BF16}}))[0])
    assert all(known.sample(rng)[2][column] for _ in range(20))


def test_drawn_worlds_agree_with_the_trials(encoding: Encoding) -> None:
    known = learnt(encoding, ["abcdef"], ["".join(NAMES)])
    rng = np.random.default_rng(0)
    valid, failed = encoding.one_hot(rows(encoding, ["abcdef", "".join(NAMES)]))
    over = 0
    for _ in range(50):
        errors, limit, forbidden = known.sample(rng)
        assert valid @ errors <= limit * (1 + 1e-9)
        assert not (valid * forbidden).any()
        over += bool(failed @ errors > limit or (failed * forbidden).any())
    assert over > 25, "what failed mostly fails in the worlds that are drawn"
