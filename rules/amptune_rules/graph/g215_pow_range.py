"""G215: a power with a large or unknown exponent in FP16."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.arguments import exponent_of
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import floating_sites, is_settled, reads_weights_alone, runs_in, where_in

LARGE = 3.0


class PowRange(GraphRule):
    """pow with an exponent of 3 and more, or one that is a tensor, in FP16.

    ## What it does
    Reports such powers where they run in FP16 and nothing bounds the base; CUDA autocast runs pow in FP32. A power
    whose base and exponent are both tensors that nothing bounds is information in every format.

    ## Why is this bad
    x cubed passes 65504 from |x| = 40.3, the fourth power from 16.

    ## Example
    ```python
    y = x.half() ** 3
    ```

    ## Use instead
    ```python
    y = x.float() ** 3
    ```

    ## Fix safety
    No automatic fix.

    ## References
    ATen/autocast_mode.h (torch 2.13).
    """

    code = "G215"
    name = "pow-range"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a cube in a half model", model_file("return self.fc(x) ** 3  # <- G215", cast=".half()",
                                                     batch="torch.randn(32, 64).half()")),
    )  # fmt: skip
    VALID = (
        Example("the same under autocast", model_file("return self.fc(x) ** 3")),
        Example("a bounded base", model_file("return torch.tanh(self.fc(x)) ** 3", cast=".half()",
                                             batch="torch.randn(32, 64).half()")),
    )  # fmt: skip

    def _products(self, context: GraphContext) -> Iterable[Finding]:
        """``x * x * x`` in FP16, which is a power too."""
        for site, half in context.sites_in_half("mul"):
            runs = runs_in(half, site, Format.FP16)
            if not runs or _is_part(context, site) or is_settled(context, site) or reads_weights_alone(context, site):
                continue
            literal, leaves = _factors(runs[0], site)
            first, ranges = leaves[0] if leaves else (site, 0), runs[0].ranges
            alike = [each for each in leaves if ranges.same(*first, *each)]
            if len(alike) < LARGE or len(alike) < len(leaves):
                continue
            limit = (Format.FP16.max / literal) ** (1 / len(alike)) if literal else math.inf
            if all(run.ranges.operand(*first).magnitude > limit for run in runs):
                yield context.finding(
                    self,
                    site,
                    f"a product of {len(alike)} times the same runs in {where_in(runs, site)} and passes 65504 from "
                    f"|x| = {limit:.1f}; compute it in float32",
                    limit=round(limit, 2),
                    format="fp16",
                )

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each power."""
        yield from self._products(context)
        half_sites = dict(context.sites_in_half("pow"))
        for site in floating_sites(context, "pow"):
            exponent, half = exponent_of(site), half_sites.get(site, ())
            if (exponent is not None and exponent < LARGE) or 0 in (site.attrs.get("scalars") or {}):
                continue
            limit = Format.FP16.max ** (1 / exponent) if exponent else 1.0
            runs = tuple(
                run for run in runs_in(half, site, Format.FP16) if run.ranges.operand(site, 0).magnitude > limit
            )
            if runs:
                what = f"the power of {exponent:g}" if exponent else "a power with a tensor as exponent"
                bound = f" from |x| = {limit:.1f}" if exponent else ""
                yield context.finding(
                    self,
                    site,
                    f"{what} runs in {where_in(runs, site)} and passes 65504{bound}; compute it in float32",
                    limit=round(limit, 2),
                    format="fp16",
                )
            elif exponent is None and all(_is_open(run, site) for run in context.runs):
                yield context.finding(
                    self,
                    site,
                    "nothing bounds the exponent of this power, a tensor, nor its base: it can leave every format",
                    severity=Severity.INFO,
                )


_FACTORS = 8


def _is_part(context: GraphContext, site: Site) -> bool:
    """Whether a product is multiplied on, so that the whole of it is another one."""
    ranges = context.runs[0].ranges
    return any(
        after.op == "mul"
        and any((root := ranges.root(after, place)) is not None and root.id == site.id for place in (0, 1))
        for after in context.graph.consumers(site.id)
    )


def _factors(run: Run, site: Site) -> tuple[float, list[tuple[Site, int]]]:
    """What a product multiplies, through products of products: the literals, and the operands that are tensors."""
    leaves: list[tuple[Site, int]] = []
    literal, fresh = 1.0, [site]
    while fresh and len(leaves) < _FACTORS:
        current = fresh.pop()
        scalars = current.attrs.get("scalars") or {}
        for place in (0, 1):
            made = run.ranges.root(current, place)
            if place in scalars:
                literal *= abs(float(scalars[place]))
            elif made is not None and made.op == "mul" and not made.is_module:
                fresh.append(made)
            else:
                leaves.append((current, place))
    return literal, leaves


def _is_open(run: Run, site: Site) -> bool:
    base, exponent = (run.ranges.operand(site, place) for place in (0, 1))
    return math.isinf(base.high) and math.isinf(exponent.high)
