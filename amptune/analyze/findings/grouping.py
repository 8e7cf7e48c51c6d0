"""Repeated calls and blocks as one finding: the same rule, line and message over calls of a site, and over layers."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from amptune.core.finding import Finding, Severity
from amptune.core.graph import SiteCall
from amptune.core.hardware import Gpu

_SHOWN_SITES = 2
_SHOWN_CALLS = 3
_WORTH_MS = 0.005
_DIVISION, _ROOT = "G205", "G206"
_K, _N, _LOSS = "G101", "G102", "G212"
_OVERFLOWS = frozenset({"G201", "G203", "G207", "G208", "G214", "G215"})


def group(findings: Iterable[Finding], step_ms: Mapping[tuple[str, str], float], gpus: Sequence[Gpu]) -> list[Finding]:
    """One finding for each rule, line and message, with all sites in its evidence and the predicted gain in words.

    Numbers under ``saves_ms`` and ``bytes`` are added up over the sites. Sites of a line that have one odd size are one
    finding, as severe as the gravest, whatever else their shapes are; so is information that differs in numbers alone,
    with those of the first site, and that of lines that follow each other: the norms of images and of texts. Sorted by
    place, then rule.
    """
    grouped: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in findings:
        grouped.setdefault(_likeness(finding), []).append(finding)
    merged = [_merged(same, step_ms, gpus) for same in _with_neighbours(list(grouped.values()))]
    return sorted(merged, key=lambda finding: (*finding.sort_key, finding.site or ""))


def _likeness(finding: Finding) -> tuple[Any, ...]:
    """What findings that become one have in common."""
    location, evidence = finding.location, finding.evidence
    if isinstance(_dimension(finding), str) and "padded" in evidence:
        named = finding.message.partition(" ")[0]
        return finding.rule, location.path, location.line, named, str(evidence["value"]), str(evidence["padded"])
    told = finding.message
    if finding.severity is Severity.INFO and "padded" not in evidence:
        told = _NUMBER.sub("", told)
    return finding.rule, location.path, location.line, told, finding.severity


def _with_neighbours(groups: Sequence[list[Finding]]) -> list[list[Finding]]:
    """The groups, those of information that lines which follow each other, or the forward of one module, have in common
    as one, first line first."""
    alike: dict[tuple[Any, ...], list[list[Finding]]] = {}
    kept = []
    for same in groups:
        key = _beside_place(same[0])
        if key is None:
            kept.append(same)
        else:
            alike.setdefault(key, []).append(same)
    for several in alike.values():
        last = None
        for same in sorted(several, key=lambda each: each[0].sort_key):
            line = same[0].location.line
            is_near = last is not None and 0 < line - last <= 1
            if is_near or (last is not None and _forward(same[0]) and _forward(same[0]) == _forward(kept[-1][0])):
                kept[-1] = [*kept[-1], *same]
            else:
                kept.append(same)
            last = max(same[0].location.end_line or line, line)
    return kept


def _forward(finding: Finding) -> str:
    """The module in whose forward the op stands that information is about; empty for layers and other findings."""
    site = finding.site or ""
    is_information = finding.severity is Severity.INFO
    return site.partition("#")[0] if is_information and site.partition("#")[0] and "#" in site else ""


def _beside_place(finding: Finding) -> tuple[Any, ...] | None:
    """What information, or a count of bytes, has in common with that of the next line; ``None`` for other findings,
    and for sizes: a layer each is one to change each."""
    is_told_so = finding.severity is Severity.INFO or "bytes" in finding.evidence
    if not is_told_so or "padded" in finding.evidence or finding.site is None:
        return None
    return finding.rule, finding.location.path, finding.severity, _NUMBER.sub("", finding.message)


def without_repeats(findings: Sequence[Finding]) -> list[Finding]:
    """Findings but for what others say too.

    Left out are information about dimensions of a site that other findings name one by one, with their size, unless it
    says why a recipe does not run; the second
    of two dimensions, where the finding about the first names it; what is said of an overflow of a site that a more
    severe finding is about, and that a loss which overflows keeps few digits; and normalisations by a root that another
    finding, as severe, is about: an eps under the root is what both need.
    """
    named = {(each.site, dimension) for each in findings if isinstance(dimension := _dimension(each), str)}
    worst: dict[str | None, Severity] = {}
    for each in findings:
        if _is_overflow(each):
            worst[each.site] = max(each.severity, worst.get(each.site, each.severity))
    roots = {each.site: each.severity for each in findings if each.rule == _ROOT}
    pairs = {_pair(each): each.severity for each in findings if each.rule == _K and "together" in each.evidence}
    return [
        each
        for each in findings
        if (not _is_repeat(each, named) or "stops" in each.evidence)
        and not (each.rule == _LOSS and each.severity <= worst.get(each.site, Severity.INFO - 1))
        and not (_is_overflow(each) and each.severity < worst[each.site])
        and not _is_told_at_root(each, roots)
        and not (each.rule == _N and each.severity <= pairs.get(_pair(each, of_k=False), Severity.INFO - 1))
    ]


def _pair(finding: Finding, *, of_k: bool = True) -> tuple[str | None, Any, Any]:
    """The site of a product, and the two sizes that a finding about K or N names, K first."""
    value, other = str(finding.evidence.get("value")), str(finding.evidence.get("together"))
    return (finding.site, value, other) if of_k else (finding.site, other, value)


def _is_told_at_root(finding: Finding, roots: Mapping[str | None, Severity]) -> bool:
    """Whether a finding about a denominator has the cause of one about the root that is the denominator."""
    root = finding.evidence.get("root") if finding.rule == _DIVISION else None
    return root in roots and root is not None and finding.severity <= roots[root]


def _is_overflow(finding: Finding) -> bool:
    """Whether a finding is about a result that passes the largest number of FP16."""
    return finding.rule in _OVERFLOWS and finding.evidence.get("format") == "fp16"


def _is_repeat(finding: Finding, named: Set[tuple[str | None, Any]]) -> bool:
    dimensions = _dimension(finding)
    if finding.severity is not Severity.INFO or not isinstance(dimensions, list):
        return False
    return all((finding.site, each) in named for each in dimensions)


def _dimension(finding: Finding) -> Any:
    return finding.evidence.get("dimension")


def of_sites(findings: Iterable[Finding]) -> list[Finding]:
    """Findings about calls as findings about sites: those that differ in numbers alone are one, and where not all
    calls of the site have it, it names those that do. What some of them have beside the others, such as a gradient, is
    said of all. Information about its other calls is left out where a more severe finding is about some: the line is
    the same."""
    grouped: dict[tuple[Any, ...], list[Finding]] = {}
    worst: dict[tuple[Any, ...], Severity] = {}
    for finding in findings:
        key = (finding.site, finding.location, finding.severity, _NUMBER.sub("", finding.message))
        grouped.setdefault(key, []).append(finding)
        worst[key[:2]] = max(finding.severity, worst.get(key[:2], finding.severity))
    for key in sorted(grouped, key=lambda each: len(each[3])):
        fuller = next((other for other in grouped if other[:3] == key[:3] and _says_more(other[3], key[3])), None)
        if fuller is not None:
            grouped[fuller] += grouped.pop(key)
    return [
        _of_site(same) for key, same in grouped.items() if not (_is_of_some_calls(same) and key[2] < worst[key[:2]])
    ]


def _says_more(longer: str, shorter: str) -> bool:
    """Whether a message is another one with a further consequence in it: ``log(0) is -inf and its gradient ...``."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(longer, shorter, strict=False))
    start = sum(1 for _ in pairs)
    rest = shorter[start:]
    return longer.endswith(rest) and longer[start : len(longer) - len(rest)].startswith(" and ")


def _is_of_some_calls(same: Sequence[Finding]) -> bool:
    """Whether information is about some of the calls of a site that has several."""
    calls = {call for each in same for call in each.evidence.get("calls", ())}
    is_information = same[0].severity is Severity.INFO
    return is_information and any(len(calls) < call.count for call in calls)


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*(e[-+]?\d+)?|\binf\b)")


def _of_site(same: Sequence[Finding]) -> Finding:
    first = same[0]
    calls: list[SiteCall] = list(dict.fromkeys(call for each in same for call in each.evidence.get("calls", ())))
    if not calls:
        return first
    evidence = {key: value for key, value in first.evidence.items() if key != "calls"}
    if len(calls) == calls[0].count:
        return dataclasses.replace(first, evidence=evidence)
    evidence["calls"] = [{"call": each.number, "of": each.count, "line": each.place or None} for each in calls]
    return dataclasses.replace(first, message=first.message + _named(calls), evidence=evidence)


def _named(calls: Sequence[SiteCall]) -> str:
    """``[call 2 of 3, made at model.py:31]``, or for a line that a loop runs again, which of the times it is."""
    numbers = [str(each.number) for each in calls[:_SHOWN_CALLS]] + ["..."] * (len(calls) > _SHOWN_CALLS)
    places = list(dict.fromkeys(each.place for each in calls if each.place))[:_SHOWN_CALLS]
    if not places:
        return f" [{_times([each.number for each in calls], calls[0].count)} times that this line runs in a step]"
    made = f", made at {' and '.join(places)}"
    return f" [call{'s' * (len(calls) > 1)} {', '.join(numbers)} of {calls[0].count}{made}]"


def _times(numbers: Sequence[int], count: int) -> str:
    """``the 2nd of 40``, ``from the 2nd on of 40``: which turns of a loop."""
    first = min(numbers)
    if len(numbers) > 1 and len(numbers) == count - first + 1:
        return f"from the {_ordinal(first)} on, of {count}"
    shown = ", ".join(_ordinal(number) for number in sorted(numbers)[:_SHOWN_CALLS])
    return f"the {shown}{', ...' if len(numbers) > _SHOWN_CALLS else ''} of {count}"


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _merged(same: Sequence[Finding], step_ms: Mapping[tuple[str, str], float], gpus: Sequence[Gpu]) -> Finding:
    first = same[0]
    evidence = dict(first.evidence)
    named = (finding.evidence.get("sites") or [finding.site] for finding in same if finding.site)
    sites = list(dict.fromkeys(site for each in named for site in each))
    if sites:
        evidence["sites"] = sites
    if "saves_ms" in evidence:
        evidence["saves_ms"] = _summed([finding.evidence["saves_ms"] for finding in same])
    if "bytes" in evidence:
        evidence["bytes"] = sum(finding.evidence["bytes"] for finding in same)
    told = list(dict.fromkeys(finding.message for finding in same))
    said = min(told, key=len) if "padded" in evidence else first.message
    numbers = ", numbers of the first" if len(told) > 1 and said == first.message else ""
    lines = list(dict.fromkeys(finding.location.line for finding in same))
    if len(lines) > 1:
        evidence["lines"] = lines
    gain = _gain(evidence.get("saves_ms", {}), step_ms, gpus)
    message = said + _traffic(evidence) + gain + _places(lines[1:]) + _others(sites, numbers)
    severity = max(finding.severity for finding in same)
    return dataclasses.replace(first, message=message, severity=severity, evidence=evidence)


def _places(lines: Sequence[int]) -> str:
    """The further lines that a finding is about."""
    return f"; the same on line{'s' * (len(lines) > 1)} {', '.join(map(str, lines))}" if lines else ""


def _summed(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: round(sum(part.get(key, 0.0) for part in parts), 4) for key in parts[0]}


def _traffic(evidence: Mapping[str, Any]) -> str:
    moved = evidence.get("bytes")
    return f"; about {_figures(moved / 2**20, 2)} MiB of extra traffic a step" if moved else ""


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


def _others(sites: Sequence[str], numbers: str = "") -> str:
    if len(sites) < 2:
        return ""
    shown = ", ".join(site or "the model" for site in sites[:_SHOWN_SITES])
    return f" [{len(sites)} sites{numbers}: {shown}{', ...' if len(sites) > _SHOWN_SITES else ''}]"
