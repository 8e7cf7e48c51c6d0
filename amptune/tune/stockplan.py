"""A stock recipe written as a plan, for the case that nothing beats it: the user still takes home a file that runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.tune.recipes import Candidate


def plan_of_stock(candidate: Candidate, header: Mapping[str, Any], fp8_sites: Iterable[str] = ()) -> Plan:
    """The plan that does what ``candidate`` does: an autocast recipe is one region around the whole model.

    ``fp8_sites``: the linears that an FP8 recipe converts; they become FP8 linears of the runtime, within the region.
    """
    sites: dict[str, SitePlan] = {}
    if candidate.autocast is not None:
        why = f"nothing beat stock autocast in {candidate.autocast}: the whole forward runs under it"
        sites[""] = SitePlan(candidate.autocast, how="autocast", why=why)
    if candidate.float8 is not None:
        sites |= {site: SitePlan(Format.FP8_E4M3, candidate.float8) for site in sorted(fp8_sites)}
    return Plan(sites=sites, tf32=candidate.tf32, loss_format=Format.FP32, scaler=candidate.scaler, **header)
