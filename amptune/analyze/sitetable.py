"""Sites of repeated blocks as one line of the terminal's table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence

from amptune.analyze.estimate import SiteTimes
from amptune.core.closeness import FIXED
from amptune.core.graph import Site
from amptune.core.ops import Family, op_named
from amptune.report.table import SiteRow

_SMALLEST_SHARE = 0.005
_MULTIPLE = 8
"""Elements of 16 bits in the 16 bytes that a row is aligned to."""


def site_rows(times: Sequence[SiteTimes], half: str, stopped: Collection[str] = ()) -> list[SiteRow]:
    """Lines for the sites, like ones together, largest gain first; what is under 0.5 % of the FP32 step is left out.

    Args:
        times: of the sites on one GPU.
        half: the 16-bit recipe that is shown, whose times the notes are about.
        stopped: recipes that do not run, whose times are nobody's.
    """
    groups: dict[object, list[SiteTimes]] = {}
    left_out = {*stopped, *(name + FIXED for name in stopped)}
    for entry in times:
        kept = {name: value for name, value in entry.milliseconds.items() if name not in left_out}
        entry = dataclasses.replace(entry, milliseconds=kept)
        groups.setdefault(_group(entry.site), []).append(entry)
    rows = [_row(entries, half) for entries in groups.values()]
    total = sum(row.milliseconds.get("fp32", 0.0) for row in rows)
    shown = [row for row in rows if max(row.milliseconds.values(), default=0.0) >= _SMALLEST_SHARE * total]
    return sorted(shown, key=lambda row: -_gain(row))


def _gain(row: SiteRow) -> float:
    return row.milliseconds.get("fp32", 0.0) - min(row.milliseconds.values())


def _group(site: Site) -> object:
    return (site.op, site.location, shape_of(site), _pattern(site.id))


def _pattern(name: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|#|$)", r"\1*", name)


def _row(entries: Sequence[SiteTimes], half: str) -> SiteRow:
    site = entries[0].site
    milliseconds: dict[str, float] = {}
    for entry in entries:
        for recipe, value in entry.milliseconds.items():
            milliseconds[recipe] = milliseconds.get(recipe, 0.0) + value
    name = _pattern(site.id) if len(entries) > 1 else site.id
    return SiteRow(name, site.op, shape_of(site), len(entries), milliseconds, _note(entries[0], milliseconds, half))


def shape_of(site: Site) -> str:
    """Rows, columns and reduction of its matrix product, else the shape of its output."""
    if site.gemms:
        gemm = site.gemms[0]
        return (f"{gemm.batch}x " if gemm.batch > 1 else "") + f"{gemm.m}x{gemm.n}x{gemm.k}"
    return "x".join(map(str, site.outputs[0].shape)) if site.outputs else ""


def _held_back_by(site: Site) -> str:
    """What ``+fixed`` changes about a site."""
    if op_named(site.op).family is Family.CONV:
        ends = (("in", site.inputs[:1]), ("out", site.outputs[:1]))
        sizes = [(f"{end}_channels", each.shape[1]) for end, seen in ends for each in seen if len(each.shape) > 1]
    else:
        sizes = [(name, size) for gemm in site.gemms for name, size in (("N", gemm.n), ("K", gemm.k))]
    odd = dict.fromkeys(f"{name} = {size}" for name, size in sizes if size > _MULTIPLE and size % _MULTIPLE)
    misaligned = f"{' and '.join(odd)} misaligned" if odd else "misaligned"
    if site.attrs.get("channels_last") is not False:
        return misaligned
    return f"{misaligned} and contiguous" if odd else "contiguous"


def _note(entry: SiteTimes, milliseconds: dict[str, float], half: str) -> str:
    plain, fixed = milliseconds.get(half), milliseconds.get(half + FIXED)
    if plain and fixed and fixed < 0.9 * plain:
        return f"{_held_back_by(entry.site)}: {fixed:.3f} when fixed"
    return f"keep fp32: {entry.why}" if entry.why else ""
