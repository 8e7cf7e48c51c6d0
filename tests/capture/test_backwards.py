"""The backward of a custom autograd function is tried alike, whether its forward ran on fakes or for real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd.function import Function

from amptune.capture.backwarddivisions import backward_divisions
from amptune.capture.backwardproducts import mixed_product
from amptune.capture.backwards import BackwardWatch, run_backward

RUNS = pytest.mark.parametrize("is_fake", [False, True], ids=["real", "fake"])


class Projected(Function):
    """Saves an input, a parameter, its own output and a number; keeps one more tensor on the context."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        y = x @ weight
        ctx.save_for_backward(x, weight, y)
        ctx.row, ctx.width = weight[0].detach(), x.shape[-1]
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, y = ctx.saved_tensors
        unit = grad * ctx.row.to(grad.dtype) / y.norm(dim=-1, keepdim=True) / ctx.width
        return unit @ weight.t(), x.t() @ unit


class Cast(Projected):
    """Casts the parameter to what the gradient is in, and adds to the norm."""

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, y = ctx.saved_tensors
        unit = grad / (y.norm(dim=-1, keepdim=True) + 1e-6)
        return unit @ weight.t().to(grad.dtype), x.t() @ unit


class Watch(BackwardWatch):
    """Lets each op pass, and keeps the gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[torch.Tensor] = []

    def begin(self, gradients: Sequence[torch.Tensor]) -> None:
        self.gradients = list(gradients)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def given(is_fake: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What a forward is given."""
    x, weight = torch.randn(4, 8), nn.Parameter(torch.randn(8, 8))
    if is_fake:
        mode = FakeTensorMode()
        x, weight = mode.from_tensor(x), mode.from_tensor(weight)
    return x, weight


def forward(function: type[Function], is_fake: bool) -> torch.Tensor:
    """The result of a forward, with gradients."""
    result: torch.Tensor = function.apply(*given(is_fake))
    return result


@RUNS
def test_the_product_of_a_16_bit_gradient_with_a_parameter_is_seen(is_fake: bool) -> None:
    assert mixed_product(Projected, forward(Projected, is_fake)) == "matmul"
    assert mixed_product(Cast, forward(Cast, is_fake)) == ""


@RUNS
def test_a_division_by_a_norm_is_seen(is_fake: bool) -> None:
    assert [each.by for each in backward_divisions(Projected, forward(Projected, is_fake))] == ["norm"]
    assert backward_divisions(Cast, forward(Cast, is_fake)) == ()


class Normed(Projected):
    """Divides by a norm that its forward works out."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        size = x.norm(dim=-1, keepdim=True)
        ctx.save_for_backward(x, weight, size)
        return (x / size) @ weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, size = ctx.saved_tensors
        return grad @ weight.t() / size, x.t() @ grad


@RUNS
def test_a_forward_that_runs_again_tells_what_made_the_saved_tensors(is_fake: bool) -> None:
    arguments = given(is_fake)
    result = Normed.apply(*arguments)
    assert backward_divisions(Normed, result) == ()
    (found,) = backward_divisions(Normed, result, arguments)
    assert found.by == "norm"
    assert "/ size, x.t()" in Path(__file__).read_text().splitlines()[found.location.line - 1]


@RUNS
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_backward_gets_fakes_alone_and_parameters_as_they_are(is_fake: bool, dtype: torch.dtype | None) -> None:
    seen: list[torch.Tensor] = []

    class Told(Projected):
        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> None:  # type: ignore[override]
            seen.extend((grad, *ctx.saved_tensors, ctx.row))
            raise RuntimeError("not made for these")

    run_backward(Told, forward(Told, is_fake), Watch(), dtype)
    assert all(isinstance(each, FakeTensor) for each in seen)
    cast, own = dtype or torch.float32, torch.float32
    assert [each.dtype for each in seen] == [cast, cast, own, cast, own]


def test_what_has_no_gradient_is_not_tried() -> None:
    watch = Watch()
    run_backward(Projected, torch.ones(2), watch)
    assert watch.gradients == []
