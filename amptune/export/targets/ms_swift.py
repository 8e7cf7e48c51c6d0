"""ms-swift: arguments of ``swift sft``, and of Megatron-SWIFT where the plan has FP8."""

from __future__ import annotations

from typing import Any

import yaml

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import headline, plan_notes
from amptune.export.export import Export, Lost, comment_block
from amptune.export.model import ModelFile
from amptune.export.targets.megatron import RECIPES
from amptune.export.view import by_format, execution_lost, fp8_modules, half_format, stock_autocast


def export(plan: Plan, model: ModelFile) -> Export:
    """The YAML that ``swift sft FILE`` or ``megatron sft FILE`` takes; both of fp16 and bf16 are always in it."""
    lost = tuple(_lost(plan, model))
    command = "megatron sft" if fp8_modules(plan) else "swift sft"
    notes = (
        f"Run: {command} swift.yaml --model ...",
        "fp16 and bf16 are both written: left out, swift derives them from torch_dtype, and float32 becomes fp16.",
        "There is no loss scale here: --loss_scale of swift weights tokens, and has nothing to do with FP16.",
        *plan_notes(plan),
    )
    head = comment_block(headline("ms-swift", plan), lost, notes)
    return Export(head + yaml.safe_dump(arguments(plan), sort_keys=False), lost, notes)


def arguments(plan: Plan) -> dict[str, Any]:
    """The precision arguments."""
    half = half_format(plan)
    planned = fp8_modules(plan)
    low = half.label if half else None
    found: dict[str, Any] = {"torch_dtype": "float32", "fp16": low == "fp16", "bf16": low == "bf16"}
    if planned:
        recipe, number_format = RECIPES[str(next(iter(planned.values())).scaling)]
        found |= {
            "torch_dtype": "bfloat16", "fp8_format": number_format, "fp8_recipe": recipe,
            "attention_softmax_in_fp32": True, "accumulate_allreduce_grads_in_fp32": True, "main_params_dtype": "fp32",
        }  # fmt: skip
    return found


def _lost(plan: Plan, model: ModelFile) -> list[Lost]:
    lost = []
    if plan.sites and stock_autocast(plan) is None:
        lost.append(
            Lost(
                f"swift has one precision for the whole model ({by_format(plan.sites)} were planned)",
                f"For the plan itself register the model of {model.module}.py by --external_plugins and set fp16 and "
                "bf16 to false; Megatron-SWIFT reads the megatron target's YAML (te_precision_config_file in "
                "extra_megatron_kwargs).",
            )
        )
    if plan.scaler.enabled and half_format(plan) is Format.FP16:
        lost.append(
            Lost(
                f"swift has no fields for the loss scaler (init_scale {plan.scaler.init_scale:g} was planned)",
                "It starts at 65536 and loses the first steps: give it a ds_config.json of the deepspeed target.",
            )
        )
    return [*lost, *execution_lost(plan, tf32="Add tf32: true on a GPU that has it.")]
