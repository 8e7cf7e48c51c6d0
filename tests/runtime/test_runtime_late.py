"""Parameters that a forward computes with in float32, and whose result is cast where it meets 16 bits."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amptune import runtime

X = torch.randn(2, 5, 8)
LATE = {"format": "bf16", "how": "late"}


class Cosine(nn.Module):
    """Attention by cosines with a learnt scale, and a projection whose weight is normalised by hand."""

    def __init__(self, by_hand: bool = False) -> None:
        super().__init__()
        self.qk = nn.Linear(8, 16)
        self.tau = nn.Parameter(torch.full((1, 1, 1), math.log(10.0)))
        self.v = nn.Parameter(torch.randn(8, 8))
        self.g = nn.Parameter(torch.rand(8) + 0.5)
        self.by_hand = by_hand
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).chunk(2, -1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scale = torch.clamp(self.tau, max=math.log(100.0)).exp()
        weight = self.g[:, None] * self.v / self.v.norm(dim=1, keepdim=True)
        if self.by_hand:
            scale, weight = scale.to(scores.dtype), weight.to(scores.dtype)
        scores = scores * scale
        self.seen.append(scores.dtype)
        return F.linear(scores.softmax(-1) @ q, weight)


def _planned(by_hand: bool = False) -> Cosine:
    torch.manual_seed(0)
    model = Cosine(by_hand)
    held = {} if by_hand else {"tau": LATE, "v": LATE, "g": LATE}
    runtime.apply_plan(model, {"qk": "bf16"} | held)
    return model


def test_values_and_gradients_are_those_of_casts_written_by_hand() -> None:
    model, twin = _planned(), _planned(by_hand=True)
    out, expected = model(X), twin(X)
    assert out.dtype == torch.bfloat16
    assert model.seen == [torch.bfloat16]
    assert torch.equal(out, expected)
    out.float().square().sum().backward()
    expected.float().square().sum().backward()
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None
        assert type(parameter.grad) is Tensor
        assert parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, other.grad)  # type: ignore[arg-type]


def test_compiled_it_is_one_graph_of_the_same_values() -> None:
    model = _planned()
    model.seen = _Forgets()
    found, eager = torch.compile(model, backend="aot_eager", fullgraph=True)(X), model(X)
    assert found.dtype == eager.dtype
    # Before, the parameter is cast at once.
    assert torch.equal(found, eager) if runtime.LATE_COMPILES else torch.allclose(found, eager, rtol=0.1, atol=0.1)


class _Forgets(list):  # type: ignore[type-arg]
    def append(self, value: object) -> None:
        pass


def test_fp16_and_fp32() -> None:
    for number_format, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
        model = Meets(lambda x, p: x * p[0].exp(), number_format)
        assert model(X.half()).dtype == dtype


class Meets(nn.Module):
    """What a function makes of the input and a parameter that is cast late."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any], number_format: str = "bf16") -> None:
        super().__init__()
        self.p = nn.Parameter(torch.rand(8, 8) + 0.5)
        self.function = function
        runtime.apply_plan(self, {"p": {"format": number_format, "how": "late"}})

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.p)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, p: x * p[0],
        lambda x, p: p.softmax(-1)[:5] - x,
        lambda x, p: x @ (1 / p),
        lambda x, p: F.linear(x, torch.sigmoid(p) * 2, p[0].exp()),
        lambda x, p: torch.cat([x, p.tanh().expand(2, 8, 8)], 1),
        lambda x, p: F.layer_norm(x, (8,), p[0].exp(), p[1] ** 2),
        lambda x, p: torch.where(x > 0, x, F.softplus(p[0])),
        lambda x, p: x.clone().mul_(p[0].log()),
        lambda x, p: x * (p.float() * 2).clamp_(max=2.0)[0],
        lambda x, p: x * (p / torch.tensor(3.0)).amax(0),
        lambda x, p: x * p.exp().to(x.dtype)[0],
        lambda x, p: x * torch.stack(p.unbind(0)).prod(0),
    ],
)
def test_it_keeps_the_format_of_what_it_meets(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Meets(function)
    out = model(X.bfloat16())
    assert out.dtype == torch.bfloat16
    assert type(out) is Tensor
    out.float().sum().backward()
    assert model.p.grad is not None
    assert model(X).dtype == torch.float32


def test_arithmetic_before_that_is_in_float32() -> None:
    """The exponential of 80 is infinite in float16, and its logarithm in bfloat16 is another number."""
    model = Meets(lambda x, p: x * (p * 100).exp().log()[0], "fp16")
    with torch.no_grad():
        model.p.fill_(0.8)
    assert torch.equal(model(torch.ones(2, 8).half()), torch.full((2, 8), 80.0).half())


def test_with_a_float32_result_of_the_input_it_is_a_plain_tensor() -> None:
    model = Meets(lambda x, p: x.float() * p[0].exp() * x)
    assert model(X.bfloat16()).dtype == torch.float32


def test_what_leaves_the_model_is_plain() -> None:
    model = Meets(lambda x, p: {"out": x * p[0], "scale": p.exp(), "p": p})
    out = model(X.bfloat16())
    assert all(type(each) is Tensor for each in out.values())
    assert out["scale"].dtype == torch.float32


def test_undone_copied_and_pickled() -> None:
    model = _planned()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X), model(X))
    assert type(model.tau) is nn.Parameter
    runtime.undo_plan(model)
    assert type(model) is Cosine
    assert model(X).dtype == torch.float32


def test_a_recomputed_forward_casts_late_too() -> None:
    model = _planned()

    def loss() -> Tensor:
        return model(X).float().square().mean()

    loss().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    for reentrant in (False, True):
        model.zero_grad()
        x = X.clone().requires_grad_()
        torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).float().square().mean().backward()
        found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ({"qk": LATE}, "is a module"),
        ({"tau": {"format": "bf16", "how": "autocast"}}, "how='late'"),
        ({"tau": {"format": "fp8_e4m3", "scaling": "tensorwise", "how": "late"}}, "cast to fp32, bf16 or fp16"),
    ],
)
def test_what_cannot_be_is_said(sites: dict[str, Any], words: str) -> None:
    model = Cosine()
    with pytest.raises(ValueError, match=words):
        runtime.apply_plan(model, sites)
    assert type(model) is Cosine
