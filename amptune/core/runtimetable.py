"""A plan as the table that ``amptune_runtime.apply_plan`` takes, in a trial, a patched file and an export alike."""

from __future__ import annotations

from amptune.core.formats import Format
from amptune.core.plan import HELD, Plan, SitePlan

TableEntry = dict[str, str | int]
"""What the table says of one module or tensor, by the runtime's keys; what is as usual is left out."""


def runtime_table(plan: Plan) -> dict[str, TableEntry]:
    """Path -> entry of every module and tensor that the plan decides, in the plan's order."""
    return {path: _entry(site) for path, site in decided_paths(plan).items()}


def decided_paths(plan: Plan) -> dict[str, SitePlan]:
    """Path -> decision for every module and tensor that the plan decides, in the plan's order.

    A functional op with ``how="autocast"`` puts the module that holds it in an autocast region, of the 16-bit format
    that one of these ops asks for. Ops that follow their inputs or are pinned in the source decide no path.
    """
    regions: dict[str, SitePlan] = {}
    own: dict[str, SitePlan] = {}
    for name, site in plan.sites.items():
        path, is_function, _ = name.partition("#")
        if not is_function and site.how in ("swap", "autocast", *HELD):
            own[path] = site
        elif is_function and site.how == "autocast" and (path not in regions or site.format is not Format.FP32):
            regions[path] = site
    decided = {**regions, **own}
    in_order = dict.fromkeys(name.partition("#")[0] for name in plan.sites)
    return {path: decided[path] for path in in_order if path in decided}


def _entry(site: SitePlan) -> TableEntry:
    entry: TableEntry = {"format": site.format.label}
    if site.scaling:
        entry["scaling"] = site.scaling
    if site.pad:
        entry["pad"] = site.pad
    if site.pad_in:
        entry["pad_in"] = site.pad_in
    if site.strided:
        entry["strided"] = True
    if site.how in ("autocast", "read", "late"):  # an own tensor the runtime knows by its path
        entry["how"] = site.how
    return entry
