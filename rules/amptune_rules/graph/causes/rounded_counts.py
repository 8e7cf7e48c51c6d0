"""G211: differences, counts and numbers of rows that 16 bits hold in part."""

from __future__ import annotations

import math

from amptune.core.arguments import reduced_count
from amptune.core.finding import Finding
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import by_autocast, cast_inputs, delivering

_DIFFERENCES = ("sub", "diff")
_EXACT = ("float32", "float64", "int64", "int32")
_TABLES = ("embedding", "embedding_bag", "index_select", "gather", "index")


def rounded_differences(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """Differences of numbers of one tensor of the batch, as of timestamps, that were rounded before."""
    places = site.attrs.get("batch") or {}
    if site.op not in _DIFFERENCES or len(places) != len(site.inputs) or len(set(places.values())) != 1:
        return None
    for number_format in (Format.BF16, Format.FP16):
        name = number_format.torch_name
        runs = tuple(run for run in context.runs if all(each == name for each in run.dtypes[site.id].inputs))
        largest = max((_stored_size(context, run, site) for run in runs), default=0.0)
        if number_format.largest_exact_integer < largest < math.inf:
            step = number_format.spacing_at(largest)
            return context.finding(
                rule,
                site,
                f"differences of numbers of the batch up to {largest:.4g} that were rounded to {number_format} "
                f"(under {recipes_in(runs)}): neighbouring numbers are {step:g} apart there; subtract in the "
                "format of the batch, and cast the difference",
                largest=largest,
                format=str(number_format),
            )
    return None


def _stored_size(context: GraphContext, run: Run, site: Site) -> float:
    """How large the numbers of the batch are that a site reads, and that the batch holds in more digits."""
    bounds, cast = context.bounds(run), cast_inputs(site)
    if bounds is None or not all(tensor.dtype in _EXACT or at in cast for at, tensor in enumerate(site.inputs)):
        return 0.0
    return max(bounds.arriving(site, position).magnitude for position in range(len(site.inputs)))


def rounded_counts(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """Sums of a mask in 16 bits."""
    if site.op != "sum" or 0 not in site.attrs.get("tested", ()):
        return None
    count = reduced_count(site)
    for number_format in (Format.BF16, Format.FP16):
        runs = delivering(context, site, number_format)
        if runs and count > number_format.largest_exact_integer:
            return context.finding(
                rule,
                site,
                f"a count of up to {count} is rounded to {number_format} (under {recipes_in(runs)}), which has no "
                f"{number_format.largest_exact_integer + 1}: count in float32",
                count=count,
                format=str(number_format),
            )
    return None


def rounded_rows(rule: GraphRule, context: GraphContext, site: Site) -> Finding | None:
    """Numbers computed in 16 bits that are cast to integers and then pick a row of a table."""
    rows = max((_rows_picked(after, site) for after in context.graph.consumers(site.id)), default=0)
    for number_format in (Format.BF16, Format.FP16):
        most = number_format.largest_exact_integer
        if rows <= most + 1:
            continue
        runs = delivering(context, site, number_format)
        runs = tuple(run for run in runs if _reach(context, run, site) > most)
        if runs:
            return context.finding(
                rule,
                site,
                f"the numbers of {rows} rows are computed in {number_format} (under {recipes_in(runs)}), which has "
                f"no {most + 1}: many rows are never picked, and others in their place; compute the number in "
                f"integers, or in float32{' with autocast off' if by_autocast(runs, site) else ''}",
                count=rows,
                format=str(number_format),
            )
    return None


def _rows_picked(table: Site, number: Site) -> int:
    """How many rows a lookup has whose row numbers are the floating numbers of another site, cast to integers."""
    reads = any(
        source == number.id and tensor.dtype in ("int64", "int32")
        for source, tensor in zip(table.sources, table.inputs, strict=False)
    )
    if table.op not in _TABLES or not reads or not all(output.is_floating for output in number.outputs):
        return 0
    shape = table.params[0].meta.shape if table.params else table.inputs[0].shape if len(table.inputs) > 1 else ()
    dim = table.attrs.get("dim", 0)
    if table.op == "index" and (table.attrs.get("operands") or ())[1:] != [0 if table.params else 1]:
        return 0  # of several axes
    return shape[dim] if isinstance(dim, int) and dim < len(shape) else 0


def _reach(context: GraphContext, run: Run, site: Site) -> float:
    """How large the numbers of a site may be: clamped ones, or codes of a few bits, may pick the first rows alone."""
    bounds = context.bounds(run)
    return min(each[site.id].magnitude for each in (run.ranges, bounds or run.ranges))
