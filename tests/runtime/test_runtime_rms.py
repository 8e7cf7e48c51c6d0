"""Root mean square norms by hand: known by what they compute, run as one kernel, given back as they were."""

from __future__ import annotations

import copy
import pickle
import pkgutil
from collections.abc import Callable

import pytest
import torch
from torch import nn

from amptune.runtime import apply_plan, rms_epsilon


class HandNorm(nn.Module):
    """As large language models bring it."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)
        self.variance_epsilon = eps
        self.factor = 1e-3

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = hidden.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * x.to(hidden.dtype)


class Centred(HandNorm):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden - hidden.mean(-1, keepdim=True))


class OnePlusWeight(HandNorm):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) / self.weight * (1 + self.weight)


class EpsilonOutside(HandNorm):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden / (hidden.pow(2).mean(-1, keepdim=True).sqrt() + self.variance_epsilon)


class WithGate(HandNorm):
    def forward(self, hidden: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * gate


class WithResidual(HandNorm):
    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden if residual is None else hidden + residual)


class WithDropout(HandNorm):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(hidden), 0.5, self.training)


class WithBuffer(HandNorm):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.register_buffer("steps", torch.zeros(()))


OTHERS: list[Callable[[int], nn.Module]] = [
    Centred, OnePlusWeight, EpsilonOutside, WithGate, WithResidual, WithDropout, WithBuffer, nn.RMSNorm, nn.LayerNorm,
    lambda n: nn.Linear(n, n),
]  # fmt: skip


@pytest.mark.parametrize("eps", [1e-5, 1e-6, 1e-8])
def test_the_epsilon_is_found_by_trying(eps: float) -> None:
    assert rms_epsilon(HandNorm(24, eps)) == eps
    with torch.device("meta"):
        assert rms_epsilon(HandNorm(24, eps)) == eps


@pytest.mark.parametrize(
    ("place", "eps"),
    [
        ("llama.modeling_llama.LlamaRMSNorm", 1e-6),
        ("qwen3.modeling_qwen3.Qwen3RMSNorm", 1e-6),
        ("t5.modeling_t5.T5LayerNorm", 1e-6),
        ("gemma.modeling_gemma.GemmaRMSNorm", None),  # one plus the weight
    ],
)
def test_the_norms_of_language_models(place: str, eps: float | None) -> None:
    pytest.importorskip("transformers")
    assert rms_epsilon(pkgutil.resolve_name(f"transformers.models.{place}")(24)) == eps


@pytest.mark.parametrize("make", OTHERS)
def test_what_computes_something_else_is_left_alone(make: Callable[[int], nn.Module]) -> None:
    assert rms_epsilon(make(24)) is None


def test_trying_leaves_the_random_state_alone() -> None:
    norm = WithDropout(24).eval()
    before = torch.get_rng_state()
    assert rms_epsilon(norm) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_one_with_hooks_is_left_alone() -> None:
    norm = HandNorm(24)
    norm.register_forward_hook(lambda _module, _args, output: output)
    assert rms_epsilon(norm) is None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(16, 24), HandNorm(24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(hidden=self.first(x)))


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(x).float().square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_in_float32_it_computes_the_same() -> None:
    model, x = Block(), torch.randn(7, 16)
    output, expected = model(x), gradients(model, x)
    applied = apply_plan(model, dict.fromkeys(("first", "norm", "second"), "fp32"))
    torch.testing.assert_close(model(x), output)
    for found, should in zip(gradients(model, x), expected, strict=True):
        torch.testing.assert_close(found, should)
    applied.undo()
    assert type(model.norm) is HandNorm
    assert torch.equal(model(x), output)
    assert not [name for name in vars(model.norm) if "amptune" in name]


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_in_16_bits_no_kernel_of_the_hand_written_norm_is_left(name: str, dtype: torch.dtype) -> None:
    model, x = Block(), torch.randn(7, 16)
    expected = gradients(model, x)
    apply_plan(model, {"*": name})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert model.norm(torch.randn(3, 24, dtype=dtype)).dtype == dtype
    assert "aten::rms_norm" in {event.name for event in profile.events() or ()}
    for found, should in zip(gradients(model, x), expected, strict=True):
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), should.flatten(), dim=0) > 0.999
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
