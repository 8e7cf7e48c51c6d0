"""G203: exponentials that overflow in FP16, or whose result a product reads in FP16."""

from __future__ import annotations

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._exponentials import FP16_LIMIT, given_to, input_name, limit_of, scale_of
from amptune_rules.graph._numeric import called, chain, where_in


def in_fp16(rule: GraphRule, context: GraphContext, site: Site, runs: tuple[Run, ...]) -> Finding:
    """An exponential whose arithmetic is in FP16, in some runs."""
    certain = all(given_to(run, site).low * scale_of(site) > FP16_LIMIT for run in runs)
    return context.finding(
        rule,
        site,
        f"{site.op} runs in {where_in(runs, site)} and overflows to infinity for inputs over "
        f"{limit_of(site, FP16_LIMIT):.2f}; nothing in the graph bounds its input",
        severity=Severity.ERROR if certain else None,
        limit=round(limit_of(site, FP16_LIMIT), 2),
        format="fp16",
        chain=chain(context, site),
    )


def read_in_fp16(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """An exponential in FP32 whose result a product reads in FP16, as it is or times a number."""
    readers = _readers_in_fp16(context, site)
    if not readers:
        return None
    reader = next(iter(readers.values()))
    return context.finding(
        rule,
        site,
        f"nothing bounds the {input_name(site)}, and {called(reader)} reads its result in fp16 (under "
        f"{recipes_in(tuple(readers))}): infinity over {limit_of(site, FP16_LIMIT):.2f}; subtract the maximum "
        "first, or clamp it",
        limit=round(limit_of(site, FP16_LIMIT), 2),
        format="fp16",
        chain=chain(context, site),
    )


def _readers_in_fp16(context: GraphContext, site: Site) -> dict[Run, Site]:
    """The runs in which a product reads the FP32 result in FP16, as it is or times a number, with that product."""
    found: dict[Run, Site] = {}
    for run in context.runs:
        for name in _scaled(context, site):
            for reader in context.graph.consumers(name):
                dtypes, sources = run.dtypes[reader.id], run.ranges.sources(reader)
                casts = zip(sources, dtypes.given, dtypes.inputs, strict=False)
                if (name, "float32", "float16") in casts:
                    found.setdefault(run, reader)
    return found


def _scaled(context: GraphContext, site: Site) -> list[str]:
    """A site and what multiplies it with numbers alone."""
    names = [site.id]
    for name in names:
        names += [
            after.id
            for after in context.graph.consumers(name)
            if after.op in ("mul", "div") and after.attrs.get("scalars") and after.id not in names
        ]
    return names
