"""A stock recipe written as a plan, for the case that nothing beats it: the user still takes home a file that runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from amptune.core.formats import Format
from amptune.core.plan import BF16_MASTER, Plan, SitePlan
from amptune.tune.running.recipes import Candidate


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
    # A recipe that lowers nothing leaves the output as it is, which a model with 16-bit weights of its own has in 16.
    loss_format = Format.FP32 if sites or candidate.params else None
    return Plan(sites=sites, tf32=candidate.tf32, loss_format=loss_format, scaler=candidate.scaler,
                params=candidate.params, **header)  # fmt: skip


def parameters_note(plan: Plan, *, makes_optimizer: bool) -> str | None:
    """What the user has to know of a patched model with parameters in BF16; None for a plan that leaves them alone.

    ``makes_optimizer``: the patched file has a ``make_optimizer`` of the user's.
    """
    if plan.params is None:
        return None
    note = "the patched model holds its parameters and buffers in BF16, and so does its state_dict"
    if plan.params != BF16_MASTER:
        return f"{note}; the optimizer steps on them"
    if makes_optimizer:
        return f"{note}; its make_optimizer returns an optimizer with FP32 copies, which its state_dict keeps"
    return (
        f"{note}; give your optimizer the FP32 copies before its first step: "
        "from amptune_runtime import master_weights; optimizer = master_weights(optimizer)"
    )
