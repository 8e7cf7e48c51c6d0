"""Repeated blocks as one finding: the same rule, line and message over many layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amptune.core.finding import Finding
from amptune.core.hardware import Gpu

_SHOWN_SITES = 2
_WORTH_MS = 0.005


def group(findings: Iterable[Finding], step_ms: Mapping[tuple[str, str], float], gpus: Sequence[Gpu]) -> list[Finding]:
    """One finding for each rule, line and message, with all sites in its evidence and the predicted gain in words.

    Numbers under ``saves_ms`` are added up over the sites. Sorted by place, then rule.
    """
    grouped: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.rule, finding.location, finding.message, finding.severity)
        grouped.setdefault(key, []).append(finding)
    merged = [_merged(same, step_ms, gpus) for same in grouped.values()]
    return sorted(merged, key=lambda finding: (*finding.sort_key, finding.site or ""))


def _merged(same: Sequence[Finding], step_ms: Mapping[tuple[str, str], float], gpus: Sequence[Gpu]) -> Finding:
    first = same[0]
    evidence = dict(first.evidence)
    sites = list(dict.fromkeys(finding.site for finding in same if finding.site))
    if sites:
        evidence["sites"] = sites
    if "saves_ms" in evidence:
        evidence["saves_ms"] = _summed([finding.evidence["saves_ms"] for finding in same])
    message = first.message + _gain(evidence.get("saves_ms", {}), step_ms, gpus) + _others(sites)
    return dataclasses.replace(first, message=message, evidence=evidence)


def _summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(sum(part.get(key, 0.0) for part in parts), 4) for key in parts[0]}


def _gain(saves: Mapping[str, float], step_ms: Mapping[tuple[str, str], float], gpus: Sequence[Gpu]) -> str:
    parts = []
    for gpu in gpus:
        saved = saves.get(gpu.key, 0.0)
        step = step_ms.get((gpu.key, f"autocast-{gpu.best_16bit}"))
        if saved >= _WORTH_MS and step:
            parts.append(f"{_figures(saved, 2)} of {_figures(step, 3)} ms on {gpu.key}")
    return f"; would save about {', '.join(parts)} a step (predicted)" if parts else ""


def _figures(value: float, digits: int) -> str:
    """A number with so many figures and never an exponent."""
    return f"{value:,.0f}" if value >= 10**digits else f"{value:.{digits}g}"


def _others(sites: Sequence[str]) -> str:
    if len(sites) < 2:
        return ""
    shown = ", ".join(site or "the model" for site in sites[:_SHOWN_SITES])
    return f" [{len(sites)} sites: {shown}{', ...' if len(sites) > _SHOWN_SITES else ''}]"
