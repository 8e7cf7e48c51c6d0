"""Points as rows: priced as the cost model prices them, one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest

from amptune.core.choice import BF16, FP8, FP16, FP32, TF32
from amptune.core.formats import Format
from amptune.core.graph import LOSS
from amptune.core.sensitivity import RoundingError, Sensitivity, SiteSensitivity
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost
from amptune.tune.allocation.costmodel import CostModel
from amptune.tune.allocation.encoded import Encoding
from amptune.tune.choices.space import COMPILED_LOSS, Group, Space
from amptune.tune.prices.losses import PLAIN_LOSS

NAMES = ("a", "b", "c", "d")


def make_model(losses: dict[str, float]) -> CostModel:
    """Four groups on a residual stream, the last of them read by the loss; ``c`` may run in FP8."""
    choices = {name: (FP32, BF16, FP16, *(FP8[:1] if name == "c" else ())) for name in NAMES}
    groups = tuple(
        Group(n, (n,), "module", ("swap",), choices[n], frozenset("c") if n == "c" else frozenset()) for n in NAMES
    )
    pin = Group("softmax", ("softmax",), "pin", ("swap",))
    costs = {n: {c: SiteCost(1.0 + i + 0.3 * j) for j, c in enumerate(choices[n])} for i, n in enumerate(NAMES)}
    costs["b"][TF32] = SiteCost(0.7)
    images = {n: {c: SiteCost(cost.forward * 0.8) for c, cost in values.items()} for n, values in costs.items()}
    pairs = [(Format.FP32, Format.BF16, 0.5), (Format.FP32, Format.FP16, 0.6), (Format.BF16, Format.FP16, 0.9)]
    casts = {frozenset((a, b)): CastPrice(p, 0.0) for a, b, p in pairs}
    table = CostTable(costs, casts, {"a": images["a"]}, losses, scaling=0.4)
    edges = [Edge(("a",), ("b",), 10), Edge(("b",), ("c",), 10), Edge(("a", "c"), ("d",), 10), Edge(("d",), (LOSS,), 9)]
    space = Space(
        (*groups, pin),
        tf32=True,
        channels_last=True,
        losses=("fp32", "follow", COMPILED_LOSS),
        meets=(frozenset("ac"), frozenset("cd")),
    )
    site = SiteSensitivity({c: RoundingError(c.format.epsilon) for c in (BF16, FP16, *FP8)})
    return CostModel(space, table, edges, Sensitivity(dict.fromkeys(NAMES, site)))


@pytest.mark.parametrize("losses", [{}, {PLAIN_LOSS: 2.0, "fp32": 3.0, "follow": 1.0, COMPILED_LOSS: 1.5}])
def test_rows_cost_what_the_cost_model_says(losses: dict[str, float]) -> None:
    model = make_model(losses)
    encoding, rng = Encoding(model), random.Random(0)
    points = [{n: rng.choice(v) for n, v in model.space.choices().items()} for _ in range(300)]
    rows = np.array([encoding.encode(point) for point in points])
    assert encoding.milliseconds(rows) == pytest.approx([model.predicted(point) for point in points])
    assert encoding.bytes(rows) == pytest.approx([model.bytes(point) for point in points])
    assert encoding.one_hot(rows) @ encoding.errors() == pytest.approx([model.error(point) for point in points])
    assert encoding.is_legal(rows).tolist() == [model.made_legal(point) == point for point in points]
    assert all(encoding.decode(row) == point for row, point in zip(rows, points, strict=True))


def test_what_rounds_more_than_its_alternatives_is_risky() -> None:
    model = make_model({})
    encoding = Encoding(model)
    columns = [(name, value) for name, values in model.space.choices().items() for value in values]
    risky = {column for column, is_risky in zip(columns, encoding.risky, strict=True) if is_risky}
    formats = {(n, v) for n in NAMES for v in model.space.choices()[n] if v != "fp32"}
    assert risky == formats | {("softmax", "follow"), (":loss", "follow"), (":tf32", "on")}


def test_changes_are_all_single_ones_and_the_format_of_all_that_meet() -> None:
    model = make_model({})
    encoding = Encoding(model)
    point = model.space.uniform(BF16)
    found = [encoding.decode(row) for row in encoding.single_changes(encoding.encode(point)[None])[0]]
    single = [{**point, n: v} for n, values in model.space.choices().items() for v in values]
    together = {**point, "a": "fp16", "c": "fp16", "d": "fp16"}
    assert all(changed in found for changed in single)
    assert together in found, "a meets c and c meets d: none of them can go to FP16 alone"
    assert all(changed in [*single, together] for changed in found)


def test_pairs_that_a_tensor_links_change_together() -> None:
    model = make_model({})
    encoding = Encoding(model)
    row = encoding.encode(model.space.point({}))
    changes = encoding.pair_changes(row[None])[0]
    found = [{n for n, value in encoding.decode(changed).items() if value == "bf16"} for changed in changes]
    assert {frozenset(names) for names in found if names} == {frozenset(p) for p in ("ab", "bc", "ad", "cd")}
    some = encoding.pair_changes(row[None], np.random.default_rng(0), 3)[0]
    assert len(some) == 3
    assert all(any((r == changed).all() for changed in changes) for r in some)


def test_the_flag_of_tf32_weighs_what_is_left_in_fp32() -> None:
    """With the one group that TF32 speeds up in BF16, the flag is hardly a choice."""
    encoding = Encoding(make_model({}))
    points = [encoding.model.space.point({"b": b, ":tf32": "off"}) for b in ("fp32", "bf16")]
    in_fp32, elsewhere = encoding.weighed(encoding.rows(points)) / encoding.one_hot(encoding.rows(points)).clip(1e-9)
    flag = encoding.columns_with({(":tf32", "off")})
    assert in_fp32[flag] == pytest.approx(1.0)
    assert 0 < elsewhere[flag] < 0.1
    assert elsewhere[encoding.columns_with({("b", "bf16")})] == pytest.approx(1.0)


def test_halves_are_alike_and_so_are_scalings_of_fp8() -> None:
    encoding = Encoding(make_model({}))
    columns = [f"{name}:{v}" for name, values in zip(encoding.names, encoding.values, strict=True) for v in values]
    found = [{columns[row] for row in np.flatnonzero(column)} for column in encoding.alike().T]
    assert found == [{f"{name}:bf16", f"{name}:fp16"} for name in NAMES], "one scaling alone is like no other"
