"""Transformer Engine: te.Linear with a recipe of its own at each FP8 site, the rest of the plan around them."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import dict_literal, python_file
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.targets.torchao import rest_arguments, rest_table
from amptune.export.view import fp8_modules, listed, parts_lost, unpinned

RECIPES = {
    "tensorwise": "Float8CurrentScaling(fp8_format=Format.HYBRID)",
    "rowwise": "Float8BlockScaling(fp8_format=Format.E4M3)",
    "rowwise_gw_hp": 'Float8BlockScaling(fp8_format=Format.E4M3, backward_override="high_precision")',
}
"""Our scalings -> the recipe nearest to them."""

_FILE = """\
import torch
import transformer_engine.pytorch as te
from transformer_engine.common.recipe import {classes}

from amptune_runtime import apply_plan, set_backend_flags
{imports}

{recipes}
{sites}
{rest}

class Fp8Linear(te.Linear):
    \"\"\"te.Linear that enters FP8 by itself, with its own recipe, on BF16 input; parameters stay FP32.\"\"\"

    fp8_recipe = None

    def forward(self, inp, *args, **kwargs):
        \"\"\"As te.Linear's, inside ``te.autocast``.\"\"\"
        with torch.autocast("cuda", dtype=torch.bfloat16), te.autocast(enabled=True, recipe=self.fp8_recipe):
            return super().forward(inp, *args, **kwargs)


def fp8_linear(linear, recipe):
    \"\"\"An Fp8Linear with the parameters of ``linear``; names in state_dict stay.\"\"\"
    new = Fp8Linear(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        params_dtype=linear.weight.dtype,
        device=linear.weight.device,
    )
    new.weight = linear.weight
    if linear.bias is not None:
        new.bias = linear.bias
    new.fp8_recipe = recipe
    return new


def convert(model):
    \"\"\"``model`` with its planned linears in FP8 and the rest of the plan in force, in place.\"\"\"
    for path, scaling in FP8.items():
        model.set_submodule(path, fp8_linear(model.get_submodule(path), RECIPES[scaling]))
    return apply_plan(model, REST{arguments}).model


def make_planned():
    \"\"\"A new model on the GPU with the plan in force.\"\"\"
    if torch.cuda.get_device_capability() < (8, 9):
        raise RuntimeError("FP8 needs compute capability 8.9 (Ada) or newer")
    set_backend_flags(tf32={tf32})
    return convert({builder}().cuda())
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """A ``convert`` function: te.Linear with ``te.autocast`` per module, and the runtime's table for the rest."""
    planned = fp8_modules(plan)
    used = [name for name in RECIPES if any(site.scaling == name for site in planned.values())] or ["tensorwise"]
    classes = sorted({RECIPES[name].partition("(")[0] for name in used} | {"Format"})
    recipes = "\n".join(f'    "{name}": {RECIPES[name]},' for name in used)
    code = _FILE.format(
        classes=", ".join(classes),
        imports=model.imports(original=True),
        recipes=f"RECIPES = {{\n{recipes}\n}}",
        sites=dict_literal("FP8", {path: str(site.scaling) for path, site in planned.items()}),
        rest=dict_literal("REST", rest_table(plan), "all other layers, as amptune_runtime takes them"),
        arguments=rest_arguments(plan),
        tf32=plan.tf32,
        builder=model.original_builder,
    )
    notes: tuple[str, ...] = (
        f"amptune_runtime.py belongs beside this file and {model.original}, which stays unpatched.",
    )
    if not planned:
        notes = (*notes, "The plan has no FP8 site: te.Linear is used nowhere.")
    return python_file(f"Transformer Engine for {model.original}", plan, model, code, lost=_lost(plan), notes=notes)


def _lost(plan: Plan) -> list[Lost]:
    lost = []
    planned = fp8_modules(plan)
    rowwise = [path for path, site in planned.items() if site.scaling != "tensorwise"]
    if rowwise:
        lost.append(
            Lost(
                f"Transformer Engine has no rowwise scaling: {listed(rowwise)}",
                "Float8BlockScaling (blocks of 1 x 128, E4M3, powers of two) is the nearest; rowwise_gw_hp also "
                "takes the input gradient in high precision. For rowwise itself use the torchao target.",
            )
        )
    backwards = [path for path, site in planned.items() if site.format is Format.FP8_E5M2]
    if backwards:
        lost.append(
            Lost(
                f"Pure E5M2 is refused by Transformer Engine: {listed(backwards)}", "E4M3 forward is written for them."
            )
        )
    lost += [*unpinned(plan), *parts_lost(plan)]
    padded = [path for path, site in planned.items() if site.pad]
    if padded:
        lost.append(
            Lost(
                f"te.Linear does not pad output features: {listed(padded)}", "Make them a multiple of 16 in the model."
            )
        )
    return lost
