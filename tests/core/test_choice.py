from __future__ import annotations

import json
import math

import pytest

from amptune.core.choice import BF16, FP8, FP16, FP32, SCALINGS, Choice
from amptune.core.formats import Format
from amptune.core.tables import CastPrice, CostTable, Edge, SiteCost


@pytest.mark.parametrize("choice", [FP32, BF16, FP16, *FP8, Choice(Format.FP8_E5M2, "tensorwise")])
def test_a_label_is_read_back(choice: Choice) -> None:
    assert Choice.parse(choice.label) == choice
    assert str(choice) == choice.label


def test_labels() -> None:
    assert BF16.label == "bf16"
    assert Choice(Format.FP8_E4M3, "rowwise").label == "fp8_e4m3:rowwise"
    assert Choice.parse("bfloat16") == BF16


@pytest.mark.parametrize("text", ["fp8_e4m3", "bf16:rowwise", "fp8_e4m3:columnwise", "int8", ""])
def test_what_is_no_choice_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"scaling|unknown number format"):
        Choice.parse(text)


def test_the_order_is_total() -> None:
    ordered = sorted([*reversed(FP8), FP16, BF16, FP32])
    assert ordered == [FP32, BF16, FP16, *FP8]
    assert [choice.scaling for choice in ordered[3:]] == list(SCALINGS)


def test_what_travels_on_an_edge() -> None:
    assert [choice.output_format for choice in (FP32, FP16, *FP8)] == [Format.FP32, Format.FP16, *[Format.BF16] * 3]


def test_a_cost_is_the_sum_of_its_parts() -> None:
    cost = SiteCost(1.0, 2.0, 3.0, pad=64, pad_in=8)
    assert cost.ms == 6.0
    assert cost.times(2) == SiteCost(2.0, 4.0, 6.0, pad=64, pad_in=8)


def test_a_table_survives_json() -> None:
    costs = {FP32: SiteCost(1.0, 2.0, 3.0), FP8[1]: SiteCost(0.5, math.inf, 0.1, pad=16)}
    table = CostTable({"fc": costs}, {frozenset((Format.FP32, Format.BF16)): CastPrice(0.1, 1e-9)})
    assert CostTable.from_json(table.to_json()) == table
    edge = Edge(("a", "b"), ("c",), 10, 0.5)
    assert Edge.from_json(json.loads(json.dumps(edge.to_json()))) == edge


def test_fp8_pays_no_cast_to_its_neighbour_in_bf16() -> None:
    table = CostTable({}, {frozenset((Format.FP32, Format.BF16)): CastPrice(1.0, 0.0)})
    edges = [Edge(("a",), ("b",), 10)]
    assert table.total({"a": FP8[0], "b": BF16}, edges) == 0
    assert table.total({"a": FP8[0], "b": FP32}, edges) == 1.0


def test_what_two_sites_write_is_fp32_as_soon_as_one_is() -> None:
    table = CostTable({}, {frozenset((Format.FP32, Format.BF16)): CastPrice(1.0, 0.0)})
    edges = [Edge(("a", "b"), ("c",), 10)]
    assert table.total({"a": BF16, "b": BF16, "c": BF16}, edges) == 0
    assert table.total({"a": BF16, "b": FP32, "c": BF16}, edges) == 1.0
    assert table.total({"a": FP32, "b": FP32, "c": BF16}, edges) == 1.0
    assert table.total({"a": BF16, "c": BF16}, edges) == 1.0, "what is not planned is FP32"
