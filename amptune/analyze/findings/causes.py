"""One number that comes to zero, and all that breaks there: findings with one cause become one that names the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from amptune.core.finding import Finding
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext

_AT_AN_END = frozenset({"G204", "G205", "G206", "G213"})
"""Rules about what is infinite or NaN where its operand is at the end of its domain, most often zero."""
_SCALES = frozenset({"mul", "div", "neg"})
_DEPTH = 4
_SHOWN = 4


def by_cause(findings: Sequence[Finding], context: GraphContext) -> list[Finding]:
    """Findings in their order, those about one op's result as one at the line of the gravest, first among equals.

    ``softplus`` that comes to zero is divided by, logged and divided by again: what has to be mended is one line.
    """
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        if cause := _cause(context, finding):
            groups.setdefault((finding.location.path, cause), []).append(finding)
    told: dict[int, Finding] = {}
    left_out: set[int] = set()
    for (_, cause), same in groups.items():
        same = sorted(same, key=lambda each: (-each.severity, each.sort_key))
        others = [each for each in same[1:] if each.location.line != same[0].location.line]
        if not others:
            continue
        left_out.update(id(each) for each in others)
        told[id(same[0])] = _with_others(same[0], others, context.graph[cause].op)
    return [told.get(id(each), each) for each in findings if id(each) not in left_out]


def _with_others(first: Finding, others: Sequence[Finding], op: str) -> Finding:
    also = sorted({(each.location.line, each.rule) for each in others})
    shown = ", ".join(f"line {line} ({rule})" for line, rule in also[:_SHOWN])
    more = f" and {len(also) - _SHOWN} more" if len(also) > _SHOWN else ""
    evidence = {**first.evidence, "also": [{"rule": rule, "line": line} for line, rule in also]}
    return dataclasses.replace(
        first, message=f"{first.message}; the same result of {op} breaks {shown}{more}", evidence=evidence
    )


def _cause(context: GraphContext, finding: Finding) -> str:
    """The op whose result an op reads, through signs and literal factors; empty where none is known."""
    known = finding.site is not None and finding.site in context.graph
    if finding.rule not in _AT_AN_END or not known or not context.runs:
        return ""
    ranges = context.runs[0].ranges
    site = context.graph[str(finding.site)]
    current: Site | None = ranges.root(site, 1 if site.op == "div" else 0)
    for _ in range(_DEPTH):
        if current is None or current.op not in _SCALES or not (current.op == "neg" or current.attrs.get("scalars")):
            break
        current = ranges.root(current, 1 if 0 in (current.attrs.get("scalars") or {}) else 0)
    return current.id if current is not None and current.id in context.graph else ""
