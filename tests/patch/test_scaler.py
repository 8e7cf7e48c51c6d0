"""The lines that the user copies build the chosen scaler, run, and call it in the right order."""

import pytest
import torch

from amptune.core.plan import ScalerConfig
from amptune.patch.scaler import scaler_lines, training_loop

CHOSEN = ScalerConfig(enabled=True, init_scale=2.0**13, growth_interval=500)


def built(config: ScalerConfig) -> torch.amp.GradScaler:
    space: dict[str, object] = {"torch": torch}
    exec(scaler_lines(config, "cpu"), space)
    scaler = space["scaler"]
    assert isinstance(scaler, torch.amp.GradScaler)
    return scaler


@pytest.mark.parametrize("init_scale", [2.0**13, 2.0**-3, 1.0, 1000.0])
def test_the_lines_build_the_chosen_scaler(init_scale):
    config = ScalerConfig(enabled=True, init_scale=init_scale, growth_interval=500)
    scaler = built(config)
    assert (scaler.get_scale(), scaler.get_growth_interval(), scaler.is_enabled()) == (init_scale, 500, True)
    assert f"init_scale=2.0**{13}," in scaler_lines(CHOSEN)


def test_a_disabled_scaler_is_built_disabled():
    assert not built(ScalerConfig()).is_enabled()


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("config", [CHOSEN, ScalerConfig()], ids=["fp16", "off"])
def test_the_loop_trains_as_one_without_scaling(config, accumulate):
    def fresh() -> tuple[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
        torch.manual_seed(0)
        return torch.nn.Linear(4, 1), [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(8)]

    def loss_fn(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.mse_loss(output, batch[1])

    model, batches = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    space = {"torch": torch, "model": model, "batches": batches, "loss_fn": loss_fn, "optimizer": optimizer}
    exec(training_loop(config, "cpu", accumulate=accumulate, max_norm=0.5), space)

    plain, batches = fresh()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for start in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        for batch in batches[start : start + accumulate]:
            (loss_fn(plain(batch[0]), batch) / accumulate).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert norm > 0.5, "clipping must bite, or its place in the order would not show"
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_update_for_each_optimizer_step():
    space: dict[str, object] = {}
    calls: list[str] = []

    class Recorder(torch.amp.GradScaler):
        def unscale_(self, optimizer):
            calls.append("unscale_")
            return super().unscale_(optimizer)

        def step(self, optimizer, *args, **kwargs):
            calls.append("step")
            return super().step(optimizer, *args, **kwargs)

        def update(self, new_scale=None):
            calls.append("update")
            return super().update(new_scale)

    model = torch.nn.Linear(2, 1)
    text = training_loop(CHOSEN, "cpu", accumulate=2).replace("torch.amp.GradScaler", "Recorder")
    space |= {"torch": torch, "model": model, "Recorder": Recorder, "loss_fn": lambda output, _: output.sum()}
    space |= {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "batches": [(torch.ones(1, 2), None)] * 4}
    exec(text, space)
    assert calls == ["unscale_", "step", "update"] * 2
