"""torchao: float8 training for the planned linears, and the rest of the plan around them."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.core.runtimetable import runtime_table
from amptune.export.code import dict_literal, python_file
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import fp8_modules, listed, parts_lost, unpinned

RECIPES = {"tensorwise": "tensorwise", "rowwise": "rowwise", "rowwise_gw_hp": "rowwise_with_gw_hp"}
"""Our names of scalings -> torchao's names of recipes."""

_FILE = """\
import dataclasses

import torch
from torchao.float8 import Float8LinearConfig, convert_to_float8_training

from amptune_runtime import apply_plan, set_backend_flags
{imports}

{recipes}
{rest}

def config_of(recipe, emulate=False):
    \"\"\"torchao's configuration; ``emulate`` computes with FP8 values on a GPU (or CPU) without FP8 units.\"\"\"
    return dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=emulate{padding})


def in_bf16(module, args):
    \"\"\"A float8 linear gives back its input's dtype: BF16, as it was measured.\"\"\"
    return (args[0].to(torch.bfloat16), *args[1:])


def convert(model, emulate=False):
    \"\"\"``model`` with its planned linears in FP8 and the rest of the plan in force, in place.\"\"\"
    for recipe in sorted(set(FLOAT8.values())):
        convert_to_float8_training(
            model,
            config=config_of(recipe, emulate),
            module_filter_fn=lambda module, path, recipe=recipe: FLOAT8.get(path) == recipe,
        )
    for path in FLOAT8:
        model.get_submodule(path).register_forward_pre_hook(in_bf16)
    return apply_plan(model, REST{arguments}).model


def make_planned():
    \"\"\"A new model with the plan in force. torch.compile it: float8 without it is slow.\"\"\"
    has_fp8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    set_backend_flags(tf32={tf32})
    return convert({builder}(), emulate=not has_fp8)
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """A ``convert`` function: torchao's filter by path, and the runtime's table for what is not FP8."""
    planned = fp8_modules(plan)
    code = _FILE.format(
        imports=model.imports(original=True),
        recipes=dict_literal("FLOAT8", {path: RECIPES[str(site.scaling)] for path, site in planned.items()}),
        rest=dict_literal("REST", rest_table(plan), "all other layers, as amptune_runtime takes them"),
        padding=", pad_inner_dim=True" if any(site.pad for site in planned.values()) else "",
        arguments=rest_arguments(plan),
        tf32=plan.tf32,
        builder=model.original_builder,
    )
    notes = (
        f"amptune_runtime.py belongs beside this file and {model.original}, which stays unpatched.",
        *(() if planned else ("The plan has no FP8 site: nothing is converted.",)),
    )
    return python_file(f"torchao float8 for {model.original}", plan, model, code, lost=_lost(plan), notes=notes)


def rest_table(plan: Plan) -> dict[str, object]:
    """The table that ``amptune_runtime.apply_plan`` takes, for the sites that are not FP8."""
    planned = fp8_modules(plan)
    entries = {path: entry for path, entry in runtime_table(plan).items() if path not in planned}
    return {path: entry if len(entry) > 1 else entry["format"] for path, entry in entries.items()}


def rest_arguments(plan: Plan) -> str:
    """The further arguments of that ``apply_plan``, each with its comma."""
    channels_last = ", channels_last=True" if plan.channels_last else ""
    return channels_last + (f', output_format="{plan.output_format}"' if plan.output_format else "")


def _lost(plan: Plan) -> list[Lost]:
    lost = [*unpinned(plan), *parts_lost(plan)]
    if plan.loss_format is Format.FP32 and plan.output_format is not Format.FP32:
        lost.append(
            Lost(
                "The loss is not raised to FP32 here",
                "Call it as loss_fn(output.float(), batch).",
            )
        )
    backwards = [path for path, site in fp8_modules(plan).items() if site.format is Format.FP8_E5M2]
    if backwards:
        lost.append(
            Lost(
                f"torchao multiplies the forward in E4M3 only; E5M2 was planned for {listed(backwards)}",
                "They run in E4M3, with E5M2 gradients where they are scaled tensorwise.",
            )
        )
    padded = [path for path, site in fp8_modules(plan).items() if site.pad]
    if padded:
        lost.append(
            Lost(
                f"torchao pads inner dimensions, not output features: {listed(padded)}",
                "pad_inner_dim is on for all; make out_features a multiple of 16 in the model.",
            )
        )
    return lost
