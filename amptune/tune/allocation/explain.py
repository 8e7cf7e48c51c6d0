"""Why each site of a plan has its format: for every other choice, what it would have changed at this one site.

The numbers are those that the search went by: measured costs, cast prices and rounding errors, with the site flipped
and all others as the plan has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from amptune.core.choice import FP32, TF32, Choice
from amptune.core.formats import Format
from amptune.core.plan import Plan, SitePlan
from amptune.core.tables import Edge, promoted
from amptune.tune.allocation.costmodel import TF32 as TF32_FLAG
from amptune.tune.allocation.costmodel import CostModel, Point
from amptune.tune.choices.space import Group, Space

NEGLIGIBLE_MS = 5e-4
"""Half of the last digit that is shown."""

Evidence = Callable[[str, Choice], str]
"""(group, choice) -> what the trials with it showed, as half a sentence; empty where there was none."""


@dataclasses.dataclass(frozen=True)
class Counterfactual:
    """What one site in another choice would change.

    Attributes:
        choice: the other choice.
        compute_ms: milliseconds that the site itself would take more, negative for less; infinite without a kernel.
        cast_ms: milliseconds that casts around it would take more.
        error: rounding error that it would add, as ``RoundingError.total``.
        veto: why it must not be made; empty when it may.
    """

    choice: Choice
    compute_ms: float
    cast_ms: float
    error: float
    veto: str = ""

    @property
    def ms(self) -> float:
        """Milliseconds that the step would take more."""
        return self.compute_ms + self.cast_ms


def counterfactuals(model: CostModel, point: Point, site: str) -> list[Counterfactual]:
    """Every other choice of one site, evaluated against the plan of ``point``."""
    group = next(group for group in model.space.groups if site in group.sites)
    chosen = model.space.site_choices(point)
    table, edges = model.costs_at(point)
    near = [edge for edge in edges if site in edge.sources or site in edge.into]
    paid, mine = _casts(model, chosen, near), chosen[site]
    return [
        Counterfactual(
            other,
            table.site(site, other).ms - table.site(site, mine).ms,
            _casts(model, {**chosen, site: other}, near) - paid,
            model.sensitivity.error(site, other) - model.sensitivity.error(site, mine),
            model.sensitivity.veto(site, other),
        )
        for other in group.site_choices(site)
        if other != mine
    ]


def with_reasons(plan: Plan, model: CostModel, point: Point, evidence: Evidence = lambda _group, _choice: "") -> Plan:
    """The plan of ``point`` with one sentence for each site."""
    groups = {site: group for group in model.space.groups for site in group.sites}
    total = model.error(point)
    uncalled = model.space.uncalled
    sites = {
        name: dataclasses.replace(
            site,
            why=_why_uncalled(uncalled[name][1])
            if name in uncalled
            else _why(name, site, groups[name], model, point, total, evidence),
        )
        for name, site in plan.sites.items()
    }
    return dataclasses.replace(plan, sites=sites)


def _why_uncalled(twin: str | None) -> str:
    found = "the batch does not reach it, and another may"
    return f"{found}: as {twin}, which has its role" if twin else f"{found}: fp32, whatever arrives"


def _why(
    name: str, site: SitePlan, group: Group, model: CostModel, point: Point, total: float, evidence: Evidence
) -> str:
    if group.kind == "pin":
        return f"numerically sensitive: computed in fp32{' at its source line' if site.how == 'source' else ''}"
    if group.kind == "destination":
        return "computed in fp32 at its source line: it writes into a tensor that the model makes in fp32"
    if group.kind == "region":
        return f"meets fp32 tensors that no layer gives: cast to {site.format.label} there, as autocast does"
    if group.kind == "loss":
        return f"a loss: computed in fp32{' at its source line' if site.how == 'source' else ''}, as autocast does"
    if group.kind == "fixed":
        return f"fp32: {model.space.why_fixed.get(name, 'an operation that it feeds takes nothing else')}"
    others = counterfactuals(model, point, name)
    uses_tf32 = point.get(TF32_FLAG) == "on" and TF32 in model.table.sites.get(name, {})
    parts = [_gain(name, site, others, model, total, "fp32 (as tf32)" if uses_tf32 else "fp32")]
    parts += [f"not {other.choice}: {_against(other, group, evidence)}" for other in others if other.choice != FP32]
    parts += _no_fp8(name, group, model)
    if site.how == "late" and site.format is not Format.FP32:
        parts.append("what is computed from it stays fp32 up to the operation where it meets 16 bits")
    return "; ".join(part for part in parts if part)


def _gain(
    name: str, site: SitePlan, others: Sequence[Counterfactual], model: CostModel, total: float, fp32: str
) -> str:
    """What the choice saves over FP32, in the words ``fp32`` for what that means here, and its share of the error."""
    back = next((other for other in others if other.choice == FP32), None)
    if back is None:
        return "fp32"
    if name not in model.table.sites:
        saved = "not measured alone, decided by whole steps"
    elif math.isinf(back.ms):
        saved = "fp32 has no kernel here"
    elif back.ms >= 0:
        saved = f"saves {_ms(back.ms)} a step over {fp32}"
    else:
        saved = f"costs {_ms(-back.ms)} a step more than {fp32} alone, and was faster in the measured whole"
    error = model.sensitivity.error(name, site.choice)
    share = f", {error / total:.1%} of the plan's rounding error" if total > 0 else ""
    padding = f", output padded to a multiple of {site.pad}" if site.pad else ""
    return f"{site.choice} {saved}{share}{padding}"


def _against(other: Counterfactual, group: Group, evidence: Evidence) -> str:
    """Why a choice was not made."""
    if other.veto:
        return other.veto
    if math.isinf(other.ms):
        return "it has no kernel here, or a hopelessly slow one"
    if other.ms > NEGLIGIBLE_MS:
        if other.compute_ms < 0:
            return f"its casts cost {_ms(other.cast_ms)}, more than the {_ms(-other.compute_ms)} that it saves"
        casts = f" ({_ms(other.cast_ms)} of it for casts)" if other.cast_ms > NEGLIGIBLE_MS else ""
        return f"it would cost {_ms(other.ms)} more{casts}"
    seen = evidence(group.name, other.choice)
    gain = f"it would save {_ms(-other.ms)}" if other.ms < -NEGLIGIBLE_MS else "it would save nothing"
    ratio = f", for {other.error:+.2g} of rounding error" if other.error > 0 else ""
    return f"{gain} by the cost table{ratio}{f'; {seen}' if seen else ''}"


def _no_fp8(name: str, group: Group, model: CostModel) -> list[str]:
    """Why a Linear has no FP8 choice on a device that has FP8."""
    reason = model.space.no_fp8.get(name)
    return [f"not fp8: {reason}"] if reason and name not in group.fp8 else []


def _casts(model: CostModel, chosen: Mapping[str, Choice], edges: Sequence[Edge]) -> float:
    def arriving(names: Sequence[str]) -> Format:
        return promoted(chosen[name].output_format if name in chosen else Format.FP32 for name in names)

    return sum(model.table.cast(arriving(e.sources), arriving(e.into), e.numel) * e.share for e in edges)


def _ms(value: float) -> str:
    return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"


def why_all_fp32(space: Space) -> str:
    """Why no site has a 16-bit choice; empty where one has."""
    if space.offered():
        return ""
    sites = [site for group in space.groups if group.kind == "fixed" for site in group.sites]
    if not sites:
        return "no layer with weights could run in 16 bits here"
    by_reason: dict[str, list[str]] = {}
    for site in sites:
        by_reason.setdefault(space.why_fixed[site], []).append(site)
    told = [
        f"{', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}: {reason}"
        for reason, found in by_reason.items()
    ]
    return (
        f"no layer can run in 16 bits. {'; '.join(told[:3])}. Make such a tensor with dtype=x.dtype, or cast with "
        ".float() what goes into an operation without a 16-bit kernel"
    )
