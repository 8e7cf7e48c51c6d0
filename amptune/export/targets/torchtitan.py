"""torchtitan: the float8 converter's configuration, which names the linears to leave out by parts of their names."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from amptune.core.formats import Format
from amptune.core.plan import Plan
from amptune.export.code import python_file
from amptune.export.export import Export, Lost
from amptune.export.model import ModelFile
from amptune.export.view import by_format, execution_lost, fp8_modules, listed, modules

RECIPES = {"rowwise": "rowwise", "rowwise_gw_hp": "rowwise_with_gw_hp", "tensorwise": "rowwise"}
"""Our scalings -> those that torchtitan's converter offers."""

_FILE = """\
from torchtitan.components.quantization import Float8LinearConverter

# Put it into the model's converters (in its config_registry, where other converters stand). A linear is left out when
# one of these texts is part of its name.
FILTER_FQNS = {filters}

FLOAT8 = Float8LinearConverter.Config(
    recipe_name="{recipe}",
    filter_fqns=FILTER_FQNS,
    model_compile_enabled=True,
)

# [training] of the job's configuration
TRAINING = {{
    "mixed_precision_param": "{param}",
    "mixed_precision_reduce": "float32",
}}
"""


def export(plan: Plan, model: ModelFile) -> Export:
    """``Float8LinearConverter.Config`` with filter_fqns, checked against the planned FP8 linears."""
    planned = fp8_modules(plan)
    filters = filter_fqns(planned, [path for path in modules(plan) if path not in planned])
    scalings = [str(site.scaling) for site in planned.values()]
    recipe = max(RECIPES, key=lambda name: scalings.count(name)) if planned else "rowwise"
    code = _FILE.format(
        filters=_list(filters),
        recipe=RECIPES[recipe],
        param="bfloat16"
        if plan.sites and any(site.format is not Format.FP32 for site in plan.sites.values())
        else "float32",
    )
    notes = (
        "The names are those of the model that the plan was made for: torchtitan's own models have names of theirs.",
        *(() if planned else ("The plan has no FP8 site: leave the converter out.",)),
    )
    lost = _lost(plan, filters, recipe)
    return python_file(f"torchtitan for {model.original}", plan, model, code, lost=lost, notes=notes)


def filter_fqns(wanted: Collection[str], others: Iterable[str]) -> list[str]:
    """Texts of which each of ``others`` contains one and, where that can be, none of ``wanted`` does.

    A filter is the shortest end of a path (``fc2``, then ``mlp.fc2``) that no wanted path contains; the whole path
    where all of them do, which then leaves out a wanted one as well.
    """
    found: dict[str, None] = {}
    for path in others:
        if any(text in path for text in found):
            continue
        parts = path.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1) if not parts[-count].isdigit()]
        free = [end for end in [*ends, path] if not any(end in name for name in wanted)]
        found[free[0] if free else path] = None
    return list(found)


def _list(values: list[str]) -> str:
    return "[\n" + "".join(f"    {json.dumps(value)},\n" for value in values) + "]" if values else "[]"


def _lost(plan: Plan, filters: list[str], recipe: str) -> list[Lost]:
    lost = []
    planned = fp8_modules(plan)
    hidden = [path for path in planned if any(text in path for text in filters)]
    if hidden:
        lost.append(
            Lost(
                f"filter_fqns matches parts of names, so these FP8 linears are left out with others: {listed(hidden)}",
                "Rename the modules, or use the torchao target, whose filter compares whole names.",
            )
        )
    if RECIPES[recipe] != recipe and recipe == "tensorwise":
        lost.append(
            Lost(
                "torchtitan's converter has no tensorwise recipe; the plan was measured with it",
                "rowwise is written, which is slower and more exact: use the torchao target for tensorwise.",
            )
        )
    others = {path: site for path, site in planned.items() if site.scaling != recipe}
    if others:
        lost.append(
            Lost(
                f"One recipe holds for all linears; {listed(others)} were planned with another",
                f"{RECIPES[recipe]} is written.",
            )
        )
    rest = {path: site for path, site in modules(plan).items() if site.format in (Format.FP32, Format.FP16)}
    if rest and len(rest) < len(modules(plan)):
        lost.append(
            Lost(
                f"What is not FP8 follows FSDP's mixed precision, BF16 for all ({by_format(rest)} were planned)",
                "Use the patched model where these layers matter.",
            )
        )
    return [*lost, *execution_lost(plan)]
