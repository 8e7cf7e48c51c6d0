"""What a recorded step says of findings: a division, root or logarithm that broke in it is an error, not a warning."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.graph import OUTPUT, PrecisionGraph, Site
from amptune.core.observed import Observed, Stat

_RULES = frozenset({"G203", "G204", "G205", "G206", "G213", "G215"})
"""Rules about arithmetic that gives infinities or NaN in every format."""
_FORWARD = "its result held infinite or NaN values"
_BACKWARD = "the gradient of its input held infinite or NaN values"


def confirmed(findings: Iterable[Finding], graph: PrecisionGraph, observed: Observed | None) -> list[Finding]:
    """The findings, those as errors whose site is where infinities or NaN began in a recorded step in FP32.

    Args:
        findings: as the rules gave them.
        graph: the sites that ``observed`` is about.
        observed: the step; ``None`` where none was recorded.
    """
    if observed is None:
        return list(findings)
    seen = {site.id: words for site in graph if (words := _broken(graph, site, observed))}
    return [
        _as_error(each, seen[each.site])
        if each.rule in _RULES and each.site is not None and each.site in seen
        else each
        for each in findings
    ]


def beginnings(graph: PrecisionGraph, observed: Observed) -> Iterator[tuple[Site, str]]:
    """Where infinities or NaN begin in a step whose loss or gradients are not finite, and in what: forward first."""
    if observed.loss is not None and not any(stat.nonfinite for stat in observed.gradient.values()):
        return
    broken = [(site, words) for site in graph if (words := _broken(graph, site, observed))]
    yield from (each for each in broken if each[1] == _FORWARD and _goes_on(graph, each[0], observed))
    yield from (each for each in broken if each[1] == _BACKWARD)


def _goes_on(graph: PrecisionGraph, site: Site, observed: Observed) -> bool:
    """Whether infinities go on to what the step returns: those of a mask end in a softmax."""
    reached, fresh = {site.id}, [site.id]
    while fresh:
        users = list(graph.graph.successors(fresh.pop()))
        if OUTPUT in users:
            return True
        new = [each for each in users if each not in reached and _breaks(observed.forward.get(each))]
        reached.update(new)
        fresh += new
    return False


def _as_error(finding: Finding, words: str) -> Finding:
    return dataclasses.replace(
        finding,
        severity=Severity.ERROR,
        message=f"{finding.message}; so it was in a step on the batch in FP32: {words}",
        evidence={**finding.evidence, "broke": words},
    )


def _broken(graph: PrecisionGraph, site: Site, observed: Observed) -> str:
    """What of a site broke first there, in words; empty where nothing did."""
    before = graph.producers(site.id)
    if _breaks(observed.forward.get(site.id)):
        return "" if any(_breaks(observed.forward.get(each.id)) for each in before) else _FORWARD
    if site.id in observed.gradient and not _breaks(observed.gradient[site.id]):
        # What was seen of a module that is called twice is of both calls, so that it says nothing of this one.
        broken = [each.id for each in before if each.calls == 1 and _breaks(observed.gradient.get(each.id))]
        if any(_is_finite_after(graph.graph.successors(each), observed) for each in broken):
            return _BACKWARD
    return ""


def _is_finite_after(users: Iterable[str], observed: Observed) -> bool:
    """Whether nothing that reads a tensor has a gradient with infinities or NaN itself."""
    return not any(_breaks(observed.gradient.get(each)) for each in users if each != OUTPUT)


def _breaks(stat: Stat | None) -> bool:
    return stat is not None and stat.nonfinite > 0
