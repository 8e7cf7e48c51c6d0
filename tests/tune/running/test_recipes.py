from __future__ import annotations

import pytest
import torch
from torch import nn

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.tune.running.device import Device
from amptune.tune.running.recipes import Candidate, backend_flags, plan_candidate, stock_candidates


def test_backend_flags_go_back_to_what_they_were() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with backend_flags(True):
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32
        with backend_flags(False):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_the_reference_comes_first_and_fp16_gets_a_scaler() -> None:
    recipes = stock_candidates(Device("cpu"), nn.Linear(16, 16))
    assert recipes[0] == Candidate("fp32")
    assert {r.name for r in recipes} <= {"fp32", "autocast-bf16", "autocast-fp16"}, "a CPU has no TF32"
    assert all(r.scaler.enabled == (r.autocast is Format.FP16) for r in recipes)


def test_what_a_recipe_in_fewer_bits_leaves_in_fp32_may_use_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast leaves the grouped products of experts alone. A plan with TF32 beside autocast without it would gain
    what one line gives to anybody."""
    monkeypatch.setattr(Device, "has_tf32", lambda _device: True)
    recipes = {r.name: r for r in stock_candidates(Device("cpu"), nn.Linear(16, 16), params="bf16")}
    assert not recipes.pop("fp32").tf32, "the reference"
    assert {"tf32", "autocast-bf16", "params-bf16", "params-bf16-master"} <= recipes.keys()
    assert all(r.tf32 for r in recipes.values())


def test_plans_that_do_the_same_have_one_key() -> None:
    a = Plan(sites={"x": SitePlan(Format.BF16, why="one reason")})
    b = Plan(sites={"x": SitePlan(Format.BF16, why="another")})
    c = Plan(sites={"x": SitePlan(Format.BF16, pad=64)})
    assert plan_candidate(a).key == plan_candidate(b).key != plan_candidate(c).key
