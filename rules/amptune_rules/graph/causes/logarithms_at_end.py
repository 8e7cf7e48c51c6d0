"""G204: logarithms of what ops and literals let come to the end of the domain, and of an eps that the format loses."""

from __future__ import annotations

import math
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import input_of
from amptune.core.rule import GraphRule
from amptune_rules.graph._logarithms import adds_signed_product, end_of, long_product, reaches_end
from amptune_rules.graph._numeric import (
    chain,
    lost_eps,
)
from amptune_rules.graph._spectra import missing_rank, spectrum_behind

_INSTEAD = {
    "softmax": "; use log_softmax",
    "sigmoid": "; use logsigmoid, or a loss with_logits",
    "prod": "; use the sum of the logarithms",
    "cumprod": "; use the cumulative sum of the logarithms",
    "sum": "; use logsumexp where it is a sum of exponentials",
}
_MEASURES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
"""Losses, which are zero where all of their terms are: the logarithm of one is a measure such as PSNR."""


def rounded_eps(rule: GraphRule, context: GraphContext, site: Site, eps: float, bad: tuple[Run, ...]) -> Finding:
    """An eps that was written, and that the format rounds to zero."""
    return context.finding(
        rule,
        site,
        f"the eps of {eps:g} that protects {site.op} rounds to zero under {recipes_in(bad)}: {site.op}(0) is -inf",
        eps=eps,
    )


def unprotected(rule: GraphRule, context: GraphContext, site: Site, runs: tuple[Run, ...]) -> Finding:
    """What comes to the end without an eps."""
    run = runs[0]
    under = "" if len(runs) == len(context.runs) else f" under {recipes_in(runs)}"
    root = run.ranges.root(site, 0)
    low = run.ranges.operand(site, 0).low
    made_by = root.op if root else "its input"
    position = input_of(site, 0)
    is_trained = context.train and (position is None or site.inputs[position].requires_grad)
    gradient = " and its gradient not finite" if is_trained else ""
    instead = _INSTEAD["sigmoid"] if _is_rest_of_share(run, root) else _INSTEAD.get(made_by, "")
    return context.finding(
        rule,
        site,
        f"{site.op} of {made_by}, whose values start at {low:g}{under}: {site.op}({end_of(site):g}) is -inf"
        f"{gradient}{instead}",
        severity=Severity.INFO if made_by in _MEASURES else None,
        low=low,
        chain=chain(context, site),
    )


def _is_rest_of_share(run: Run, root: Site | None) -> bool:
    """Whether a difference is 1 - sigmoid(x), with a clamp between or without."""
    if root is None or root.op != "sub" or (root.attrs.get("scalars") or {}).get(0) != 1:
        return False
    share = run.ranges.root(root, 1)
    if share is not None and share.op == "clamp":
        share = run.ranges.root(share)
    return share is not None and share.op == "sigmoid"


def of_layer(rule: GraphRule, context: GraphContext, site: Site) -> Finding:
    """The output of a layer."""
    return context.finding(
        rule,
        site,
        f"{site.op} of the output of a layer, which has both signs: NaN below {end_of(site):g}; clamp it, or "
        "use softplus and an eps before it",
        chain=chain(context, site),
    )


def lost_beside(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    """An eps that no format of 16 bits has, added to what the user's code alone keeps above zero."""
    eps, runs = lost_eps(context, site)
    if runs and site.op != "log1p":
        yield context.finding(
            rule,
            site,
            f"the eps of {eps:g} under {site.op} rounds to zero under {recipes_in(runs)}: {site.op}(0) is -inf "
            "where what it is added to is zero; add it in float32",
            severity=Severity.INFO,
            eps=eps,
            chain=chain(context, site),
        )


def of_parameter(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    """What is worked out from parameters alone, or is one."""
    name = (site.attrs.get("operand_params") or {}).get(0)
    found = [run.ranges.operand(site, 0) for run in context.runs]
    if name is None and all(reaches_end(site, each) for each in found):
        below = any(each.low < end_of(site) for each in found)
        breaks = " and below: NaN" if below else f": {site.op}({end_of(site):g}) is -inf"
        yield context.finding(
            rule,
            site,
            f"{site.op} of what is worked out from parameters alone and can come to {end_of(site):g}{breaks}",
            severity=Severity.INFO,
            chain=chain(context, site),
        )
    if name is not None:
        yield context.finding(
            rule,
            site,
            f"{site.op} of the parameter {name}, which training may take to {end_of(site):g} and below: NaN; store "
            "its logarithm, or put it through softplus",
            severity=Severity.INFO,
        )


def of_spectrum(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    """Singular values and the like, of which some may be zero."""
    if site.op != "log1p" and (what := spectrum_behind(context.runs[0], site)):
        rank, rows = missing_rank(context.runs[0], site)
        singular = f" (a product of rank {rank} at most: {rows - rank} of its {rows} are zero)" if rank else ""
        yield context.finding(
            rule,
            site,
            f"{site.op} of {what}{singular}",
            severity=None if rank else Severity.INFO,
            chain=chain(context, site),
        )


def of_signed_product(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    """One more than a product of both signs, as the densities with an end of their support have it."""
    bounds = context.bounds(context.runs[0])
    if not adds_signed_product(context.runs[0], site) or (bounds and bounds.operand(site, 0).low > end_of(site)):
        return
    what = "a product" if site.op == "log1p" else "a sum with a product"
    yield context.finding(
        rule,
        site,
        f"{site.op} of {what} that has a factor of both signs, and can come to {end_of(site):g} and below as far "
        "as its terms show: NaN there; clamp it",
        severity=Severity.INFO,
        chain=chain(context, site),
    )


def of_long_product(rule: GraphRule, context: GraphContext, site: Site) -> Iterator[Finding]:
    """A product of many numbers, as the likelihood of many independent things is."""
    run = context.runs[0]
    op, count = long_product(run, site)
    if site.op == "log1p" or not op or run.ranges.operand(site, 0).low > 0:
        return
    size = 10 ** (math.log10(Format.FP32.smallest_subnormal) / count)
    yield context.finding(
        rule,
        site,
        f"{site.op} of a {op} of {count} numbers, which comes to zero in every format where they are under {size:.2g} "
        "on average; use the sum of their logarithms",
        severity=Severity.INFO,
        chain=chain(context, site),
    )
