"""Bounds from ops and literals, checked for soundness against torch, and the relations that intervals do not see."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from amptune.core.autocast import realise
from amptune.core.bounds.intervals import Range
from amptune.core.bounds.ranges import Ranges
from amptune.core.bounds.transfer.table import RULES
from amptune.core.formats import Format
from amptune.core.graph import PrecisionGraph, Site, TensorMeta
from amptune.core.recipes import RECIPES, Recipe

FLOAT = TensorMeta((4, 8), "float32", True)


def site(name: str, op: str, *sources: str, **attrs: Any) -> Site:
    return Site(
        name, op, "function", "", inputs=(FLOAT,) * len(sources), outputs=(FLOAT,), sources=sources, attrs=attrs
    )


def ranges(*sites: Site, recipe: Recipe = RECIPES["fp32"]) -> Ranges:
    graph = PrecisionGraph()
    for each in sites:
        graph.add_site(each)
    return Ranges(graph, realise(graph, recipe))


UNARY = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "exp": torch.exp, "square": torch.square,
    "abs": torch.abs, "neg": torch.neg, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu,
    "elu": torch.nn.functional.elu, "erf_": torch.erf, "sin": torch.sin, "cos": torch.cos, "atan": torch.atan,
    "expm1": torch.expm1,
    "exp2": torch.exp2, "softplus": torch.nn.functional.softplus, "relu6": torch.nn.functional.relu6,
    "logsigmoid": torch.nn.functional.logsigmoid, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "log": torch.log,
    "log1p": torch.log1p, "reciprocal": torch.reciprocal, "lgamma": torch.lgamma,
}  # fmt: skip


@given(st.floats(-30, 30), st.floats(0, 20), st.floats(0, 1), st.sampled_from(sorted(set(UNARY) & set(RULES))))
def test_bounds_of_unary_ops_hold(low: float, width: float, share: float, op: str) -> None:
    low, high = (
        (abs(low) + 1e-3, abs(low) + 1e-3 + width)
        if op in ("sqrt", "rsqrt", "log", "log1p", "lgamma")
        else (low, low + width)
    )
    found = RULES[op](site("x", op, "a"), [Range(low, high)])
    value = UNARY[op](torch.tensor(low + share * (high - low), dtype=torch.float64)).item()
    slack = 1e-3 + 1e-6 * abs(value) if math.isfinite(value) else 0.0
    assert not math.isfinite(value) or found.low - slack <= value <= found.high + slack, (op, found, value)


@given(st.floats(-9, 9), st.floats(0, 9), st.floats(-9, 9), st.floats(0, 9), st.floats(0, 1), st.floats(0, 1),
       st.sampled_from(["add", "sub", "mul", "div", "maximum", "minimum"]))  # fmt: skip
@example(1e-137, 0.0, 2e-313, 0.0, 0.0, 0.0, "div")
def test_bounds_of_binary_ops_hold(
    a: float, wide: float, b: float, other: float, first: float, second: float, op: str
) -> None:
    found = RULES[op](site("x", op, "a", "b"), [Range(a, a + wide), Range(b, b + other)])
    left, right = (
        torch.tensor(a + first * wide, dtype=torch.float64),
        torch.tensor(b + second * other, dtype=torch.float64),
    )
    function = getattr(torch, op)
    value = function(left, right).item()
    slack = 1e-6 * (1 + abs(value))
    assert not math.isfinite(value) or found.low - slack <= value <= found.high + slack, (op, found, value)


@pytest.mark.parametrize(("exponent", "low", "high"), [(2, 0, math.inf), (4, 0, math.inf), (3, -math.inf, math.inf)])
def test_powers(exponent: int, low: float, high: float) -> None:
    found = ranges(site("p", "pow", "<input>", scalars={1: exponent}))["p"]
    assert (found.low, found.high) == (low, high)


def test_literals_and_positions() -> None:
    found = ranges(
        site("s", "sigmoid", "<input>"),
        site("rest", "sub", "s", scalars={0: 1}, operands=[None, 0]),
        site("back", "sub", "s", scalars={1: 1}, operands=[0, None]),
    )
    assert found["rest"] == Range(0.0, 1.0)
    assert found["back"] == Range(-1.0, 0.0)


def test_an_eps_that_the_format_cannot_hold_is_gone() -> None:
    sites = (site("h", "linear", "<input>"), site("a", "abs", "h"), site("e", "add", "a", scalars={1: 1e-8}))
    assert ranges(*sites)["e"].low == pytest.approx(1e-8)
    assert ranges(*sites, recipe=RECIPES["autocast-fp16"])["e"].low == 0.0
    assert ranges(*sites, recipe=RECIPES["autocast-bf16"])["e"].low > 0.0


def test_an_explicit_cast_keeps_the_eps() -> None:
    sites = (site("h", "linear", "<input>"), site("a", "abs", "h", casts={0: "float32"}),
             site("e", "add", "a", scalars={1: 1e-8}))  # fmt: skip
    assert ranges(*sites, recipe=RECIPES["autocast-fp16"])["e"].low > 0.0


def test_a_product_with_itself_is_not_negative() -> None:
    assert ranges(site("h", "linear", "<input>"), site("q", "mul", "h", operands=[0, 0]))["q"].low == 0.0
    two = Site("q", "mul", "function", "", inputs=(FLOAT, FLOAT), outputs=(FLOAT,), sources=("h", "g"))
    assert ranges(site("h", "linear", "<input>"), site("g", "linear", "<input>"), two)["q"].low == -math.inf


def test_the_shifted_exponential_and_its_sum() -> None:
    found = ranges(
        site("h", "linear", "<input>"),
        site("m", "amax", "h"),
        site("d", "sub", "h", "m"),
        site("e", "exp", "d"),
        site("s", "sum", "e"),
        site("p", "div", "e", "s"),
    )
    assert found["d"].high == 0.0
    assert found["e"] == Range(0.0, 1.0)
    assert found["s"].low == 1.0
    assert found["p"] == Range(0.0, 1.0)


def test_the_maximum_of_something_else_shifts_nothing() -> None:
    found = ranges(
        site("h", "linear", "<input>"),
        site("g", "linear", "<input>"),
        site("m", "amax", "g"),
        site("d", "sub", "h", "m"),
    )
    assert found["d"].high == math.inf


def test_constants_are_told_from_what_inputs_reach() -> None:
    constant = Site("c", "sqrt", "function", "", inputs=(FLOAT,), outputs=(FLOAT,), sources=("",))
    drawn = Site("d", "sqrt", "function", "", inputs=(FLOAT,), outputs=(FLOAT,), sources=("",), attrs={"random": True})
    found = ranges(constant, drawn, site("e", "exp", "<input>"), site("f", "neg", "c"))
    assert [found.is_constant(found.graph[name]) for name in "cdef"] == [True, False, False, True]


def test_rounding_bounds_outwards_never_loses_infinity() -> None:
    assert Range(-70000.0, 70000.0).rounded(Format.FP16) == Range(-math.inf, math.inf)
    assert Range(0.0, 500.0).rounded(Format.FP8_E4M3).high == math.inf


@given(st.floats(-9, 9), st.floats(0, 3), st.floats(-9, 9), st.floats(0, 3), st.floats(0, 1), st.floats(0, 1))
def test_what_is_between_two_numbers_by_a_share_holds(
    a: float, wide: float, b: float, other: float, first: float, weight: float
) -> None:
    found = RULES["lerp"](site("x", "lerp", "a", "b", weight=weight), [Range(a, a + wide), Range(b, b + other)])
    value = (1 - weight) * (a + first * wide) + weight * (b + first * other)
    assert found.low - 1e-6 <= value <= found.high + 1e-6


def test_an_average_of_what_is_above_zero_and_what_is_not_negative_stays_above_zero() -> None:
    found = RULES["lerp"](site("x", "lerp", "a", "b", weight=0.01), [Range(0.5, 1.0), Range(0.0, 1.0)])
    assert found == Range(0.495, 1.0)


@pytest.mark.parametrize("angles", [(0.1, 1.5), (-1.5, 1.5), (4.8, 6.2)])
def test_a_cosine_of_a_narrow_angle_is_above_zero(angles: tuple[float, float]) -> None:
    assert RULES["cos"](site("x", "cos", "a"), [Range(*angles)]).low > 0


def test_a_cosine_of_a_right_angle_is_below_zero_by_rounding() -> None:
    found = RULES["cos"](site("x", "cos", "a"), [Range(0.0, math.pi / 2)])
    assert found.low <= torch.cos(torch.tensor(math.pi / 2)).item() < 0
    assert RULES["sin"](site("x", "sin", "a"), [Range(0.0, math.pi / 2)]) == Range(0.0, 1.0)


@pytest.mark.parametrize(
    ("attrs", "expected"),
    [({"min": 1e-4}, (1e-4, math.inf)), ({"min": 0, "max": 1}, (0, 1)), ({"scalars": {1: -1, 2: 1}}, (-1, 1)),
     ({"max": 5, "scalars": {1: 5}}, (-math.inf, 5))],
)  # fmt: skip
def test_clamp(attrs: dict[str, Any], expected: tuple[float, float]) -> None:
    found = ranges(site("c", "clamp", "<input>", **attrs))["c"]
    assert (found.low, found.high) == pytest.approx(expected)


def test_a_diagonal_that_is_written_over_keeps_the_other_bounds() -> None:
    """``fill_diagonal_``: the numbers that were there, or the one written."""
    found = ranges(site("a", "tanh", ""), site("b", "index_put", "a", fill_value=-1e9, in_place=True))
    assert found["b"] == Range(-1e9, 1.0)


def test_places_are_not_negative_and_within_their_operand() -> None:
    """argsort and argmax give places, sort the numbers, and topk both."""
    places = TensorMeta((4, 8), "int64")
    found = ranges(
        site("a", "tanh", ""),
        dataclasses.replace(site("b", "sort", "a", called="argsort"), outputs=(places,)),
        site("c", "sort", "a"),
        dataclasses.replace(site("d", "argmax", "a"), outputs=(places,)),
        dataclasses.replace(site("e", "topk", "a"), outputs=(FLOAT, places)),
        dataclasses.replace(site("f", "add", "e", scalars={1: 1}), inputs=(places,)),
    )
    assert [found[name] for name in "bd"] == [Range(0.0, 32.0)] * 2
    assert [found[name] for name in "ce"] == [Range(-1.0, 1.0)] * 2
    assert found["f"] == Range(1.0, 33.0)


def test_a_diagonal_is_picked_or_set_between_zeros() -> None:
    vector = TensorMeta((4,), "float32", True)
    matrix = TensorMeta((4, 4), "float32", True)
    ones = {"scalars": {1: 2.0}}
    picked = Site("p", "diag", "function", "", inputs=(matrix,), outputs=(vector,), sources=("a",))
    made = Site("m", "diag", "function", "", inputs=(vector,), outputs=(matrix,), sources=("a",))
    found = ranges(site("s", "sigmoid", ""), site("a", "add", "s", **ones), picked, made)
    assert found["p"] == Range(2.0, 3.0)
    assert found["m"] == Range(0.0, 3.0)


@pytest.mark.parametrize(
    ("equation", "expected"), [("ab->ba", 1.0), ("ab->a", 8.0), ("ab->", 32.0), ("...b->b", math.inf)]
)
def test_an_einsum_of_one_operand_moves_or_sums_its_numbers(equation: str, expected: float) -> None:
    found = ranges(site("a", "tanh", ""), site("e", "einsum", "a", equation=equation))
    assert found["e"].magnitude == expected


def test_a_write_of_unknown_numbers_has_no_bounds() -> None:
    found = ranges(site("a", "tanh", ""), site("b", "index_put", "a", "", in_place=True))
    assert not found["b"].is_known
