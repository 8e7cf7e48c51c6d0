"""Functional ops that a plan decides where they stand in the source, by their codes: ``Class.forward#op.n``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.errors import PlanError


def pinned_codes(plan: Plan, code_of: Callable[[str], str]) -> dict[str, SitePlan]:
    """Code of each op that the plan computes in FP32 -> the first of its sites. ``code_of`` gives the code of a site.

    Raises:
        PlanError: instances of one class disagree about one line, which can be pinned for all of them only.
    """
    decided: dict[str, tuple[str, bool]] = {}
    pinned: dict[str, SitePlan] = {}
    for name, site in plan.sites.items():
        if "#" not in name or site.how not in ("source", "follow"):
            continue
        code = code_of(name)
        is_pinned = site.how == "source" and site.format is Format.FP32
        other, other_is_pinned = decided.setdefault(code, (name, is_pinned))
        if is_pinned != other_is_pinned:
            raise PlanError(
                f"sites {other!r} and {name!r} are one source line, {code}, and only one of them is pinned",
                hint="pin both or neither in the plan",
            )
        if is_pinned:
            pinned.setdefault(code, site)
    return pinned


def following_codes(plan: Plan, codes: Mapping[str, str]) -> set[str]:
    """Codes of the ops that follow their inputs because the plan says so; ``codes``: site id -> code, where known."""
    return {codes.get(name) or name for name, site in plan.sites.items() if site.how == "follow"}
