"""G205: divisions in the backward of a custom autograd function by what can be zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import GraphRule


def backward_divisions(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Divisions that the capture has seen a backward make, at their own lines."""
    for site in context.graph if context.train else ():
        for division in site.attrs.get("backward_divides", ()):
            found = context.finding(
                rule,
                site,
                f"the backward of {site.op} divides by the result of {division.by}, which is zero where all that it "
                "reads is: add an eps, or clamp it",
                severity=Severity.INFO,
            )
            yield dataclasses.replace(found, location=division.location)
