"""The table of value ranges for the terminal: what is assumed, and the sites that come nearest to a format's limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_FORMATS = ("fp16", "bf16", "fp8_e4m3")
_WORDS = {"cannot overflow": "fits", "may overflow": "may", "overflows": "OVERFLOWS"}
_SITE_WIDTH = 40


def render_ranges(section: Mapping[str, Any], words: str, limit: int = 12) -> str:
    """The sites with the largest values, those that a step showed first; empty without any site.

    Args:
        section: the ``ranges`` section of the JSON report.
        words: the assumptions, in words.
        limit: most sites that are shown.
    """
    sites: Mapping[str, Mapping[str, Any]] = section["sites"]
    ordered = sorted(sites, key=lambda name: -_size(sites[name]))
    known = [name for name in ordered if math.isfinite(_size(sites[name]))][:limit]
    if not known:
        return ""
    seen = section["observed"] is not None
    rows = [["  site", "bound", *(["seen", "lost in fp16", "gradients lost"] if seen else []), *_FORMATS]]
    rows += [_row(name, sites[name], seen) for name in known]
    open_ended = sum(not math.isfinite(_bound(site)) for site in sites.values())
    lines = [f"value ranges with {words}", *_aligned(rows)]
    if open_ended:
        lines.append(f"  no bound for {open_ended} of {len(sites)} results")
    if seen:
        lines.append("  lost: share of the values that become zero in fp16; gradients without a loss scale")
    lines.append("  fp8_e4m3: without a scale, which the FP8 recipes have")
    return "\n".join(lines) + "\n"


def _row(name: str, site: Mapping[str, Any], seen: bool) -> list[str]:
    shown = name if len(name) <= _SITE_WIDTH else f"...{name[3 - _SITE_WIDTH :]}"
    cells = [f"  {shown}", _ends(site["bound"])]
    if seen:
        values, gradient = site.get("observed"), site.get("gradient")
        cells += [_ends(values), _share(values), _share(gradient)]
    return [*cells, *(_WORDS[site["verdict"][each]] for each in _FORMATS)]


def _size(site: Mapping[str, Any]) -> float:
    """The largest magnitude seen, else that of the bound; minus infinity where neither is known."""
    values = site.get("observed")
    if values is not None:
        return float(max(abs(values["low"]), abs(values["high"])))
    found = _bound(site)
    return found if math.isfinite(found) else -math.inf


def _bound(site: Mapping[str, Any]) -> float:
    ends = [math.inf if site["bound"][end] is None else abs(site["bound"][end]) for end in ("low", "high")]
    return max(ends)


def _ends(found: Mapping[str, Any] | None) -> str:
    if found is None or found["low"] is found["high"] is None:
        return ""
    low, high = ("" if found[end] is None else f"{found[end]:.3g}" for end in ("low", "high"))
    return f"[{low or '-inf'}, {high or 'inf'}]"


def _share(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['underflow']['fp16']:.1%}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
