"""Megatron-LM: command-line flags, and the per-module YAML of --te-precision-config-file."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import yaml

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.export.code import headline, plan_notes
from amptune.export.export import Export, Lost, comment_block
from amptune.export.model import ModelFile
from amptune.export.view import execution_lost, fp8_modules, half_format, listed, modules, scaler_lost

RECIPES = {
    "tensorwise": ("tensorwise", "hybrid"),
    "rowwise": ("blockwise", "e4m3"),
    "rowwise_gw_hp": ("blockwise", "e4m3"),
}
"""Our scalings -> Megatron's recipe and format. It has no rowwise scaling; blocks of 1 x 128 are the nearest."""
HIGH_PRECISION = "bf16"
_NAMES = (
    "The patterns are the module names of the model that the plan was made for; Megatron's own GPT says "
    "decoder.layers.*.self_attention.linear_qkv, linear_proj and mlp.linear_fc1, linear_fc2: rename them for it."
)
_TYPE = "TEQuantizationParams"


def export(plan: Plan, model: ModelFile) -> Export:
    """The YAML file, with the flags in the comments at its head."""
    fp16 = half_format(plan) is Format.FP16
    scaler = scaler_lost(plan.scaler, "Megatron", floor=1.0) if fp16 else []
    lost = (*_lost(plan), *scaler)
    notes = (
        f"Flags: {' '.join(flags(plan))}",
        _NAMES,
        *plan_notes(plan),
    )
    head = comment_block(headline("Megatron-LM", plan), lost, notes)
    return Export(head + yaml.safe_dump(precision_config(plan), sort_keys=False), lost, notes)


def flags(plan: Plan) -> list[str]:
    """Megatron-LM's flags for the whole model, in order."""
    half = half_format(plan)
    found = [f"--{half.label}"] if half else []
    if half is Format.FP16 and plan.scaler.enabled:
        found += [
            f"--initial-loss-scale {plan.scaler.init_scale:.0f}", "--min-loss-scale 1.0",
            f"--loss-scale-window {plan.scaler.growth_interval}", "--hysteresis 1",
        ]  # fmt: skip
    planned = fp8_modules(plan)
    if planned:
        recipe, number_format = RECIPES[str(next(iter(planned.values())).scaling)]
        found += [f"--fp8-format {number_format}", f"--fp8-recipe {recipe}", "--transformer-impl transformer_engine"]
        found += ["--te-precision-config-file precision.yaml"]
    return [*found, "--attention-softmax-in-fp32", "--accumulate-allreduce-grads-in-fp32"]


def precision_config(plan: Plan) -> dict[str, Any]:
    """The content of the per-module file: named configurations, and matchers of which the first that fits wins."""
    planned = fp8_modules(plan)
    if not planned:
        return {"configs": {}, "matchers": {}}
    configs = {HIGH_PRECISION: _params({})}
    configs |= {str(site.scaling): _params(_recipe(str(site.scaling))) for site in planned.values()}
    matchers = [(pattern, str(planned[path].scaling)) for pattern, path in _patterns(plan, planned).items()]
    named = {f"site_{number}": _matcher(*matcher) for number, matcher in enumerate(matchers)}
    return {"configs": configs, "matchers": {**named, "default": _matcher("*", HIGH_PRECISION)}}


def _patterns(plan: Plan, planned: Mapping[str, SitePlan]) -> dict[str, str]:
    """Glob -> one of the FP8 sites that it stands for: a role where all layers of the role agree, else the path."""
    found: dict[str, str] = {}
    for path, site in planned.items():
        role = "*" + ".".join("*" if part.isdigit() else part for part in path.split("."))
        alike = [name for name in modules(plan) if fnmatch.fnmatchcase(name, role)]
        agree = all(name in planned and planned[name].scaling == site.scaling for name in alike)
        found.setdefault(role if agree else f"*{path}", path)
    return found


def _matcher(pattern: str, config: str) -> dict[str, Any]:
    return {"config": config, "type": "glob", "pattern": pattern, "enabled": True}


def _params(recipe: dict[str, Any]) -> dict[str, Any]:
    return {"transformer_engine_config_type": _TYPE, "training_recipe": recipe, "evaluation_recipe": dict(recipe)}


def _recipe(scaling: str) -> dict[str, Any]:
    recipe, number_format = RECIPES[scaling]
    return {"fp8_quantization_recipe": recipe, "fp8_format": number_format}


def _lost(plan: Plan) -> list[Lost]:
    lost = []
    half = half_format(plan)
    others = [
        path for path, site in modules(plan).items() if half and not site.format.is_fp8 and site.format is not half
    ]
    if half and others:
        lost.append(
            Lost(
                f"Megatron has one 16-bit format, {half}, outside FP8; other formats were planned for {listed(others)}",
                "Softmax, losses and the router have flags of their own; the rest runs in that format: watch the loss.",
            )
        )
    rowwise = [path for path, site in fp8_modules(plan).items() if site.scaling != "tensorwise"]
    if rowwise:
        lost.append(
            Lost(
                f"Transformer Engine has no rowwise scaling: {listed(rowwise)}",
                "The blockwise recipe is written for them, blocks of 1 x 128.",
            )
        )
    return [*lost, *execution_lost(plan, tf32="Call torch.set_float32_matmul_precision('high') in your script.")]
