from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from amptune.core.formats import Format
from amptune.core.plan import Plan, ScalerConfig, SitePlan, elsewhere
from amptune.errors import PlanError

PLAN = Plan(
    sites={
        "head": SitePlan(Format.BF16, pad=64, why="alone: bf16 1 ms, fp32 4 ms"),
        "fc": SitePlan(Format.FP8_E4M3, scaling="rowwise"),
        "stem": SitePlan(Format.BF16, pad=64, pad_in=8, strided=True),
        "#softmax.0": SitePlan(Format.FP32, how="source"),
    },
    tf32=True,
    loss_format=None,
    output_format=Format.FP32,
    scaler=ScalerConfig(enabled=True, init_scale=1024.0),
    target="model.py",
    source_sha256="ab",
    fingerprint="cd",
    measured_on={"gpu": "H100", "capability": "9.0", "torch": "2.13.0", "driver": None, "mode": "eager"},
)


def as_json(**changes: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(PLAN.to_json("amptune 0")))
    return {**data, **changes}


def test_a_plan_survives_json() -> None:
    assert Plan.from_json(as_json()) == PLAN


def test_the_fields_are_the_contracts() -> None:
    data = as_json()
    assert set(data) == {"version", "tool", "model", "measured_on", "flags", "loss", "output_format", "sites", "scaler"}
    assert data["sites"]["head"] == {
        "format": "bf16", "scaling": None, "pad": 64, "how": "swap", "why": "alone: bf16 1 ms, fp32 4 ms",
    }  # fmt: skip
    assert data["loss"] == {"format": None, "compile": False}


def test_parameters_in_bf16_are_in_the_file_where_they_are_asked_for() -> None:
    plan = dataclasses.replace(PLAN, params="bf16-master")
    assert plan.behaviour_hash() != PLAN.behaviour_hash()
    data = plan.to_json("amptune 0")
    assert data["params"] == "bf16-master"
    assert Plan.from_json(data) == plan


def test_parts_that_are_compiled_are_in_the_file_where_there_are_some() -> None:
    plan = dataclasses.replace(PLAN, compile_parts=("blocks.0", "head"), backend="aot_eager")
    assert plan.behaviour_hash() != PLAN.behaviour_hash()
    data = plan.to_json("amptune 0")
    assert data["compile"] == {"parts": ["blocks.0", "head"], "backend": "aot_eager"}
    assert Plan.from_json(data) == plan


SITE = {"format": "bf16", "scaling": None, "pad": 0, "how": "swap", "why": ""}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "schema version 2 is newer"),
        ({"version": "1"}, "'version' is '1', expected int"),
        ({"sites": []}, "'sites' is \\[\\], expected dict"),
        ({"sites": {"a": SITE | {"format": "int4"}}}, r"sites\['a'\]: field 'format': unknown number format 'int4'"),
        ({"sites": {"a": SITE | {"format": "tf32"}}}, r"must be one of fp32, bf16"),
        ({"sites": {"a": SITE | {"format": "fp8_e4m3"}}}, "needs a scaling"),
        ({"sites": {"a": SITE | {"scaling": "blockwise"}}}, "scaling 'blockwise' is not one of tensorwise"),
        ({"sites": {"a": SITE | {"pad_in": -8}}}, "pad_in -8 must be a multiple"),
        ({"sites": {"a": SITE | {"strided": 1}}}, "field 'strided' is 1, expected bool"),
        ({"sites": {"a": SITE | {"scaling": "rowwise"}}}, "scaling 'rowwise' is for FP8, and the format is bf16"),
        ({"sites": {"a": SITE | {"format": "fp8_e5m2", "scaling": "rowwise"}}}, "must be one of fp32, bf16, fp16"),
        ({"sites": {"a": SITE | {"pad": -8}}}, "pad -8 must be a multiple"),
        ({"sites": {"a": SITE | {"how": "magic"}}}, "how 'magic' is not one of"),
        ({"params": "fp16"}, "'params' is 'fp16', not one of bf16, bf16-master"),
        ({"flags": {"tf32": 1, "channels_last": False}}, "'tf32' is 1, expected bool"),
        ({"scaler": PLAN.scaler.to_json() | {"growth_factor": 1.0}}, "growth_factor > 1"),
        ({"scaler": PLAN.scaler.to_json() | {"init_scale": float("inf")}}, "numbers that are finite"),
        ({"scaler": PLAN.scaler.to_json() | {"growth_factor": float("nan")}}, "numbers that are finite"),
        ({"scaler": PLAN.scaler.to_json() | {"growth_interval": 0}}, "growth_interval of a step or more"),
        ({"compile": {"parts": ["a", 1], "backend": "inductor"}}, "compile: field 'parts' must be a list of module"),
        ({"compile": {"parts": ["a"], "backend": None}}, "compile: field 'backend' is None, expected str"),
        ({"compile": {"backend": "inductor"}}, "compile: field 'parts' is missing"),
        ({"version": 0}, "schema version 0 does not exist"),
        ({"loss": {"format": "fp8_e4m3", "compile": False}}, "'format' is fp8_e4m3, not one of fp32, bf16, fp16"),
        ({"output_format": "tf32"}, "'output_format' is tf32, not one of fp32, bf16, fp16"),
        ({"sites": {"a": SITE | {"how": "follow"}}}, "how 'follow' is for an operation"),
        ({"sites": {"a": SITE | {"how": "source"}}}, "how 'source' is for an operation"),
        ({"sites": {"a#exp.0": SITE}}, "how 'swap' is for a module"),
        ({"sites": {"a#exp.0": SITE | {"how": "source"}}}, "'source' computes an operation in fp32, and the format is"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(as_json(**changes))


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"output_fromat": "bf16"}, "unknown field 'output_fromat'", "did you mean output_format?"),
        ({"sites": {"a": SITE | {"pads": 8}}}, r"sites\['a'\]: unknown field 'pads'", "did you mean pad?"),
        ({"flags": {"tf32": True, "channel_last": True}}, "flags: unknown field", "did you mean channels_last?"),
        ({"loss": {"format": None, "kind": "mse"}}, "loss: unknown field 'kind'", "known: format, compile"),
        ({"compile": {"part": ["a"], "backend": "inductor"}}, "compile: unknown field 'part'", "did you mean parts?"),
    ],
)
def test_a_field_that_would_change_nothing_is_named(changes: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(PlanError, match=message) as raised:
        Plan.from_json(as_json(**changes))
    assert raised.value.hint == hint


@pytest.mark.parametrize("data", [None, [], "plan", 3])
def test_something_else_than_an_object(data: object) -> None:
    with pytest.raises(PlanError, match=r"plan\.json: expected an object"):
        Plan.from_json(data)


@pytest.mark.parametrize("key", ["version", "model", "flags", "loss", "sites", "scaler", "measured_on"])
def test_a_missing_field_is_named(key: str) -> None:
    data = as_json()
    del data[key]
    with pytest.raises(PlanError, match=f"{key!r} is missing"):
        Plan.from_json(data)


def test_the_hash_is_of_what_it_does() -> None:
    same = dataclasses.replace(PLAN, target="elsewhere.py", measured_on={})
    reworded = dataclasses.replace(PLAN, sites={k: dataclasses.replace(v, why="x") for k, v in PLAN.sites.items()})
    assert PLAN.behaviour_hash() == same.behaviour_hash() == reworded.behaviour_hash()
    for change in ({"tf32": False}, {"channels_last": True}, {"loss_format": Format.FP32}, {"sites": {}}):
        assert dataclasses.replace(PLAN, **change).behaviour_hash() != PLAN.behaviour_hash()  # type: ignore[arg-type]


def test_fp16_is_noticed() -> None:
    assert not PLAN.uses_fp16
    assert Plan(sites={"a": SitePlan(Format.FP16)}).uses_fp16


@pytest.mark.parametrize(
    ("then", "now", "differs"),
    [("2.13.0+cu130", "2.13.0", False), ("2.13.0", "2.13.0+cpu", False), ("2.13.0+cu130", "2.13.0+cpu", True),
     ("2.13.0", "2.12.0", True), ("2.13.0+cu130", "2.12.0", True)],
)  # fmt: skip
def test_a_build_label_that_one_side_lacks_is_no_other_torch(then: str, now: str, differs: bool) -> None:
    assert (elsewhere({"torch": then}, {"torch": now}) is not None) is differs
