"""Why each site of a plan has its format, in the numbers that were measured."""

from __future__ import annotations

import dataclasses
import math

from amptune.core.choice import FP32
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.core.tables import CostTable


def with_reasons(plan: Plan, table: CostTable) -> Plan:
    """The plan with one sentence for each site."""
    sites = {name: dataclasses.replace(site, why=_why(name, site, table)) for name, site in plan.sites.items()}
    return dataclasses.replace(plan, sites=sites)


def _why(name: str, site: SitePlan, table: CostTable) -> str:
    if site.how == "source":
        return "numerically sensitive: computed in fp32 at its source line"
    costs = table.sites.get(name, {})
    measured = ", ".join(f"{choice.label} {_ms(cost.ms)}" for choice, cost in costs.items())
    if not measured:
        return "not measured alone; decided with its group by whole steps"
    padding = f", output padded to a multiple of {site.pad}" if site.pad else ""
    return f"alone, forward and backward: {measured}{padding}{_verdict(site, costs.get(FP32), table, name)}"


def _verdict(site: SitePlan, fp32: object, table: CostTable, name: str) -> str:
    if site.format is not Format.FP32 or fp32 is None:
        return ""
    best = min(cost.ms for cost in table.sites[name].values())
    slower = math.isclose(best, table.site(name, FP32).ms)
    return "; fp32 is the fastest" if slower else "; its casts, or its group, cost more than it saves"


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if math.isfinite(value) else "has no usable kernel"
