"""Sites of repeated blocks as one line of the terminal's table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from amptune.analyze.estimate import FIXED, SiteTimes
from amptune.core.graph import Site
from amptune.core.ops import op_named
from amptune.report.table import SiteRow

_SMALLEST_SHARE = 0.005


def site_rows(times: Sequence[SiteTimes]) -> list[SiteRow]:
    """Lines for the sites, like ones together, largest gain first; what is under 0.5 % of the FP32 step is left out."""
    groups: dict[object, list[SiteTimes]] = {}
    for entry in times:
        groups.setdefault(_group(entry.site), []).append(entry)
    rows = [_row(entries) for entries in groups.values()]
    total = sum(row.milliseconds.get("fp32", 0.0) for row in rows)
    shown = [row for row in rows if max(row.milliseconds.values(), default=0.0) >= _SMALLEST_SHARE * total]
    return sorted(shown, key=lambda row: -_gain(row))


def _gain(row: SiteRow) -> float:
    return row.milliseconds.get("fp32", 0.0) - min(row.milliseconds.values())


def _group(site: Site) -> object:
    return (site.op, site.location, shape_of(site), _pattern(site.id))


def _pattern(name: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|#|$)", r"\1*", name)


def _row(entries: Sequence[SiteTimes]) -> SiteRow:
    site = entries[0].site
    milliseconds: dict[str, float] = {}
    for entry in entries:
        for recipe, value in entry.milliseconds.items():
            milliseconds[recipe] = milliseconds.get(recipe, 0.0) + value
    name = _pattern(site.id) if len(entries) > 1 else site.id
    return SiteRow(name, site.op, shape_of(site), len(entries), milliseconds, _note(site, milliseconds))


def shape_of(site: Site) -> str:
    """Rows, columns and reduction of its matrix product, else the shape of its output."""
    if site.gemms:
        gemm = site.gemms[0]
        return (f"{gemm.batch}x " if gemm.batch > 1 else "") + f"{gemm.m}x{gemm.n}x{gemm.k}"
    return "x".join(map(str, site.outputs[0].shape)) if site.outputs else ""


def _note(site: Site, milliseconds: dict[str, float]) -> str:
    for recipe in ("autocast-bf16", "autocast-fp16"):
        plain, fixed = milliseconds.get(recipe), milliseconds.get(recipe + FIXED)
        if plain and fixed and fixed < 0.9 * plain:
            return f"misaligned: {fixed:.3f} when fixed"
    why = op_named(site.op).why_sensitive
    return f"keep fp32: {why}" if why else ""
