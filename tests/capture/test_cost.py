"""Floating point operations, against torch's own counter and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from amptune.capture.cost import einsum_products, gemms_of, product_of
from amptune.core.graph import Gemm


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape)


CALLS: list[tuple[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    ("linear", F.linear, (rand(2, 3, 4), rand(5, 4), rand(5)), {}),
    ("matmul", torch.matmul, (rand(4, 5), rand(5, 6)), {}),
    ("matmul", torch.matmul, (rand(2, 3, 4, 5), rand(3, 5, 6)), {}),
    ("matmul", torch.matmul, (rand(2, 3, 4), rand(4, 6)), {}),
    ("mm", torch.mm, (rand(4, 5), rand(5, 6)), {}),
    ("bmm", torch.bmm, (rand(3, 4, 5), rand(3, 5, 6)), {}),
    ("addmm", torch.addmm, (rand(6), rand(4, 5), rand(5, 6)), {}),
    ("addmm", torch.addmm, (rand(6),), {"mat1": rand(4, 5), "mat2": rand(5, 6)}),
    ("baddbmm", torch.baddbmm, (rand(3, 4, 6), rand(3, 4, 5), rand(3, 5, 6)), {}),
    ("einsum", torch.einsum, ("bij,bjk->bik", rand(2, 3, 4), rand(2, 4, 5)), {}),
    ("einsum", torch.einsum, ("bhqd,bhkd->bhqk", rand(2, 3, 4, 5), rand(2, 3, 6, 5)), {}),
    ("einsum", torch.einsum, ("...ij,jk", rand(2, 3, 4), rand(4, 5)), {}),
    ("conv1d", F.conv1d, (rand(2, 4, 16), rand(8, 4, 3)), {"stride": 2}),
    ("conv2d", F.conv2d, (rand(2, 4, 16, 16), rand(8, 2, 3, 3)), {"groups": 2, "padding": 1}),
    ("conv2d", F.conv2d, (rand(2, 4, 16, 16), rand(4, 1, 3, 3), None, 1, 1, 1, 4), {}),
    ("conv3d", F.conv3d, (rand(1, 2, 8, 8, 8), rand(4, 2, 3, 3, 3)), {}),
    ("conv_transpose2d", F.conv_transpose2d, (rand(2, 4, 8, 8), rand(4, 6, 3, 3)), {"stride": 2}),
]


@pytest.mark.parametrize(("op", "function", "args", "kwargs"), CALLS)
def test_flops_are_those_of_torchs_counter(
    op: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with FlopCounterMode(display=False) as counter:
        result = function(*args, **kwargs)
    assert sum(gemm.flops for gemm in gemms_of(op, args, kwargs, result)) == counter.get_total_flops()


def test_attention_counts_both_products() -> None:
    query, key = rand(2, 4, 8, 16), rand(2, 4, 12, 16)
    gemms = gemms_of("scaled_dot_product_attention", (query, key, key), {}, query)
    assert gemms == (Gemm(m=8, n=12, k=16, batch=8), Gemm(m=8, n=16, k=12, batch=8))


def test_grouped_products_count_each_row_once() -> None:
    rows, matrices = rand(16, 8), rand(4, 8, 6)
    (gemm,) = gemms_of("grouped_mm", (rows, matrices), {"offs": None}, None)
    assert gemm.flops == 2 * 16 * 8 * 6


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((4,), (4,), Gemm(m=1, n=1, k=4)),
        ((3, 4), (4,), Gemm(m=3, n=1, k=4)),
        ((4,), (4, 5), Gemm(m=1, n=5, k=4)),
        ((2, 1, 3, 4), (5, 4, 6), Gemm(m=3, n=6, k=4, batch=10)),
    ],
)
def test_products_follow_the_rules_of_matmul(left: tuple[int, ...], right: tuple[int, ...], expected: Gemm) -> None:
    assert product_of(left, right) == (expected,)
    assert expected.flops == 2 * torch.matmul(torch.rand(left), torch.rand(right)).numel() * expected.k


def test_an_einsum_of_three_operands_runs_from_left_to_right() -> None:
    assert einsum_products("ab,bc,cd->ad", [(2, 3), (3, 4), (4, 5)]) == (Gemm(2, 4, 3), Gemm(2, 5, 4))


def test_an_einsum_of_one_operand_is_no_product() -> None:
    assert einsum_products("ii->i", [(3, 3)]) == ()


def test_other_ops_count_nothing() -> None:
    assert gemms_of("softmax", (rand(4, 4), -1), {}, rand(4, 4)) == ()


@pytest.mark.parametrize("packed", [False, True])
def test_recurrent_products(packed: bool) -> None:
    layer = nn.LSTM(6, 8, 2, proj_size=3)
    state = (rand(2, 4, 3), rand(2, 4, 8))
    flat = [*layer._flat_weights]
    given = rand(5, 4, 6)
    args = (given.flatten(0, 1), torch.full((5,), 4), state, flat) if packed else (given, state, flat, True)
    assert gemms_of("lstm", args, {}, None) == (
        Gemm(m=20, n=32, k=6), Gemm(m=4, n=32, k=3, batch=5), Gemm(m=4, n=3, k=8, batch=5),
        Gemm(m=20, n=32, k=3), Gemm(m=4, n=32, k=3, batch=5), Gemm(m=4, n=3, k=8, batch=5),
    )  # fmt: skip


def test_a_recurrent_layer_without_a_batch() -> None:
    layer = nn.GRU(6, 8)
    args = (rand(5, 6), rand(1, 8), [*layer._flat_weights], True)
    assert gemms_of("gru", args, {}, None) == (Gemm(m=5, n=24, k=6), Gemm(m=1, n=24, k=8, batch=5))
