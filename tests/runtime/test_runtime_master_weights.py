"""Parameters in bfloat16, and the float32 copies that an optimizer steps on."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from amptune.runtime import apply_plan, master_weights, masters_in, masters_of, undo_plan

Optimizer = torch.optim.Optimizer
LOST = 2.0**-12
"""Beside a weight of 1, bfloat16 loses this; 32 of them it holds."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor, *, shift: Tensor | None = None) -> Tensor:
        y = self.fc(x) * self.scale
        return y if shift is None else y + shift


def low_model() -> nn.Module:
    return apply_plan(Net(), {}, parameters="bf16").model


def one_weight(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.full((1,), value, dtype=torch.bfloat16))


def train(model: nn.Module, optimizer: Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).float().square().mean().backward()
        optimizer.step()


def test_the_model_is_in_bfloat16_and_takes_float32_inputs() -> None:
    model = Net()
    weight = model.fc.weight
    apply_plan(model, {}, parameters="bf16")
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert model.fc.weight is weight, "an optimizer made before goes on"
    assert model(torch.ones(2, 4), shift=torch.ones(2, 4)).dtype == torch.bfloat16


def test_applying_twice_is_applying_once_and_undoing_leaves_the_inputs_alone() -> None:
    model = low_model()
    apply_plan(model, {}, parameters="bf16")
    assert len(model._forward_pre_hooks) == 1
    undo_plan(model)
    assert not model._forward_pre_hooks
    assert type(model) is Net
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 4))


def test_an_unknown_format_is_refused_and_the_model_left() -> None:
    model = Net()
    with pytest.raises(ValueError, match="format of parameters"):
        apply_plan(model, {}, parameters="fp16")
    assert model.fc.weight.dtype == torch.float32
    with pytest.raises(ValueError, match="format of master weights"):
        masters_in("bf16")


def test_updates_that_bfloat16_loses_add_up_in_the_copy() -> None:
    plain, mastered = one_weight(), one_weight()
    optimizers = [torch.optim.SGD([plain], lr=LOST), master_weights(torch.optim.SGD([mastered], lr=LOST))]
    for _ in range(32):
        for weight, optimizer in zip((plain, mastered), optimizers, strict=True):
            weight.grad = -torch.ones_like(weight)
            optimizer.step()
    assert plain.item() == 1.0
    assert mastered.item() == 1.0 + 32 * LOST


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=0.01),
        lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
        lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
        lambda params: torch.optim.Adagrad(params, lr=0.01),
    ],
    ids=["adamw", "fused", "momentum", "state from the start"],
)
def test_the_copies_are_trained_as_float32_weights_of_these_gradients_are(
    make: Callable[[list[Tensor]], Optimizer],
) -> None:
    model = low_model()
    names = [name for name, _ in model.named_parameters()]
    expected = {name: nn.Parameter(p.detach().float()) for name, p in model.named_parameters()}
    reference = make(list(expected.values()))
    optimizer = master_weights(make(list(model.parameters())))
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=torch.Generator().manual_seed(step))).float().square().mean().backward()
        for name, parameter in model.named_parameters():
            expected[name].grad = parameter.grad.float()  # type: ignore[union-attr]
        optimizer.step()
        reference.step()
    for name, (parameter, copied) in zip(names, masters_of(optimizer), strict=True):
        torch.testing.assert_close(copied, expected[name].detach(), rtol=0, atol=0)
        assert torch.equal(parameter, copied.bfloat16())
    states = [value for state in optimizer.state.values() for value in state.values() if value.numel() > 1]
    assert {value.dtype for value in states} == {torch.float32}


def test_a_resumed_run_is_the_run() -> None:
    def mastered(model: nn.Module) -> Optimizer:
        return master_weights(torch.optim.AdamW(model.parameters(), lr=1e-3))

    model = low_model()
    other = low_model()
    optimizer = mastered(model)
    train(model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 3, seed=1)

    resumed = mastered(other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(other, resumed, 3, seed=1)
    for (_, one), (_, two) in zip(masters_of(optimizer), masters_of(resumed), strict=True):
        assert torch.equal(one, two)


def test_weights_that_are_loaded_between_steps_are_not_written_over() -> None:
    weight = one_weight()
    optimizer = master_weights(torch.optim.SGD([weight], lr=LOST))
    for _ in range(2):
        with torch.no_grad():
            weight.fill_(4.0)
        weight.grad = -torch.ones_like(weight)
        optimizer.step()
        assert masters_of(optimizer)[0][1].item() == 4.0 + LOST


def test_gradients_are_gone_after_a_step_and_by_zero_grad() -> None:
    weight = one_weight()
    optimizer = master_weights(torch.optim.SGD([weight], lr=0.5))
    weight.grad = torch.ones_like(weight)
    optimizer.zero_grad()
    assert weight.grad is None
    optimizer.step()
    assert weight.item() == 1.0, "there was no gradient"
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight.item(), weight.grad, masters_of(optimizer)[0][1].grad) == (0.5, None, None)


def test_a_scheduler_drives_the_learning_rate() -> None:
    weight = one_weight()
    optimizer = master_weights(torch.optim.SGD([weight], lr=1.0))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for expected in (0.0, -0.5):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        schedule.step()
        assert weight.item() == expected


def test_a_closure_is_refused() -> None:
    weight = one_weight()
    optimizer = master_weights(torch.optim.LBFGS([weight]))
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(lambda: weight.sum())


def test_only_16_bit_parameters_are_copied_and_only_once() -> None:
    low, wide = one_weight(), nn.Parameter(torch.ones(1))
    optimizer = masters_in("fp32")(lambda params: torch.optim.SGD(params, lr=1.0))([low, wide])
    assert master_weights(optimizer) is optimizer
    assert [parameter is low for parameter, _ in masters_of(optimizer)] == [True]
    assert optimizer.param_groups[0]["params"][1] is wide
    assert masters_of(torch.optim.SGD([wide], lr=1.0)) == []
