"""The stock FP8 recipes on the workbench, with a stand-in for torchao that swaps the linears as torchao does."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from amptune.apply import apply, check_realised
from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.tune.outputs.stockplan import plan_of_stock
from amptune.tune.running.device import Device
from amptune.tune.running.float8 import float8_linears, missing_note, stock_scalings
from amptune.tune.running.recipes import float8_candidate, stock_candidates
from amptune.tune.running.training import training
from tests.tune.conftest import MLP, Make

FITS = nn.Linear(32, 16)


class Float8Linear(nn.Linear):
    """As torchao's: another module around the same parameters."""

    config: str

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input.to(torch.float8_e4m3fn).to(input.dtype))


@dataclasses.dataclass
class Config:
    name: str

    from_recipe_name = classmethod(lambda cls, name: cls(name))


def convert(module: nn.Module, *, config: Config, module_filter_fn: Callable[[nn.Module, str], bool]) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and module_filter_fn(child, name):
            with torch.device("meta"):
                swapped = Float8Linear(child.in_features, child.out_features, bias=False)
            swapped.weight, swapped.bias, swapped.config = child.weight, child.bias, config.name
            setattr(module, name, swapped)
        else:
            convert(child, config=config, module_filter_fn=module_filter_fn)
    return module


@pytest.fixture
def _torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("torchao"), types.ModuleType("torchao.float8")
    package.__spec__ = importlib.machinery.ModuleSpec("torchao", None)
    module.__dict__.update(Float8LinearConfig=Config, convert_to_float8_training=convert)
    monkeypatch.setitem(sys.modules, "torchao", package)
    monkeypatch.setitem(sys.modules, "torchao.float8", module)


@pytest.fixture
def _fp8_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "has_fp8", lambda self: True)


@pytest.mark.usefixtures("_torchao")
def test_aligned_linears_are_swapped_and_given_back_in_their_places() -> None:
    shared = nn.Linear(16, 32)
    model = nn.Sequential(nn.Linear(16, 16), nn.ModuleDict({"a": shared, "b": nn.Linear(16, 13)}), shared)
    modules, names = list(model.modules()), list(model.state_dict())
    parameters = {id(parameter) for parameter in model.parameters()}
    with float8_linears(model, "rowwise"):
        assert [type(part) for part in (model[0], model[1]["a"], model[1]["b"], model[2])] == [
            Float8Linear, Float8Linear, nn.Linear, Float8Linear,
        ]  # fmt: skip
        assert model[0].config == "rowwise"
        assert {id(parameter) for parameter in model.parameters()} == parameters
        assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


@pytest.mark.usefixtures("_torchao")
def test_the_linears_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(16, 16))
    linear = model[0]
    with pytest.raises(KeyError), float8_linears(model, "tensorwise"):
        raise KeyError
    assert model[0] is linear


@pytest.mark.usefixtures("_torchao")
def test_a_run_trains_under_the_recipe_and_leaves_the_model_as_it_was(make_bench: Make) -> None:
    bench, batches = make_bench(MLP)
    kinds = [type(part) for part in bench.model.modules()]
    with training(bench, float8_candidate("tensorwise")) as run:
        assert type(bench.model.fc1) is Float8Linear
        assert type(bench.model.fc2) is nn.Linear, "13 outputs do not fit"
        losses = [float(run.counted_step(batch)) for batch in batches.train]
    assert losses[-1] < losses[0]
    assert [type(part) for part in bench.model.modules()] == kinds
    with training(bench, float8_candidate("tensorwise")) as run:
        assert float(run.counted_step(batches.train[0])) == losses[0]


@pytest.mark.usefixtures("_torchao", "_fp8_device")
def test_the_recipes_are_there_where_the_device_and_torchao_are() -> None:
    recipes = {recipe.name: recipe for recipe in stock_candidates(Device("cpu"), FITS)}
    for scaling in ("tensorwise", "rowwise"):
        assert recipes[f"fp8-{scaling}"] == float8_candidate(scaling)
    assert missing_note(Device("cpu"), FITS) is None
    keys = [recipe.key for recipe in recipes.values()]
    assert len(set(keys)) == len(keys)


@pytest.mark.usefixtures("_fp8_device")
def test_without_torchao_the_recipes_are_left_out_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert stock_scalings(Device("cpu"), FITS) == ()
    assert not any(recipe.float8 for recipe in stock_candidates(Device("cpu"), FITS))
    assert "pip install 'amptune[fp8]'" in str(missing_note(Device("cpu"), FITS))


@pytest.mark.usefixtures("_torchao", "_fp8_device")
def test_a_model_without_a_linear_that_fits_has_no_fp8_recipes_and_that_is_said() -> None:
    """They would be autocast in BF16 under other names, measured once more each, and one might be called the best."""
    device, model = Device("cpu"), nn.Sequential(nn.Conv1d(16, 16, 3), nn.Linear(16, 13))
    assert not any(recipe.float8 for recipe in stock_candidates(device, model))
    assert "no nn.Linear of the model has dimensions that are multiples of 16" in str(missing_note(device, model))


@pytest.mark.usefixtures("_torchao")
def test_a_device_without_fp8_has_neither_recipes_nor_a_note() -> None:
    assert stock_scalings(Device("cpu"), FITS) == ()
    assert missing_note(Device("cpu"), FITS) is None


def test_the_recipe_as_a_plan_is_a_region_with_fp8_linears_in_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Linear(16, 32)
            self.norm = nn.LayerNorm(32)
            self.fc2 = nn.Linear(32, 13)

        def forward(self, x: torch.Tensor) -> Any:
            return self.fc2(self.norm(self.fc1(x)))

    header = {"measured_on": {"gpu": "a GPU"}}
    plan = plan_of_stock(float8_candidate("rowwise"), header, {"fc1"})
    assert plan == Plan.from_json(plan.to_json("amptune"))
    model, x = Net(), torch.randn(16, 16)
    apply(model, plan)
    assert check_realised(model, lambda: model(x).float().pow(2).sum().backward(), plan) == []
    assert plan.sites["fc1"].format is Format.FP8_E4M3
    bf16 = plan_of_stock(dataclasses.replace(float8_candidate("rowwise"), float8=None), header)
    assert list(bf16.sites) == [""]
