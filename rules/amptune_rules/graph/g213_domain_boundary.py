"""G213: an inverse function next to the end of its domain in 16 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.bounds.relations.whole import is_whole
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, formats_in, recipes_in
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import chain, floating_sites, is_signed, source_dtype, where_in

_ENDS = {"acos": (-1.0, 1.0), "asin": (-1.0, 1.0), "atanh": (-1.0, 1.0), "erfinv": (-1.0, 1.0), "logit": (0.0, 1.0),
         "acosh": (1.0, math.inf),
         "lgamma": (0.0, math.inf), "digamma": (0.0, math.inf)}  # fmt: skip


class DomainBoundary(GraphRule):
    """acos, asin, acosh, atanh, erfinv, logit or lgamma of what can come to the end of the domain.

    ## What it does
    Reports them in every format where the ops and literals before them say that the end is reached (a clamp to [-1, 1],
    a cosine), and where they run in 16 bits and no literal keeps their input off the ends. (Under CUDA autocast acos,
    asin and erfinv run in FP32; atanh and logit do not. A clamp before them runs in the format of what it reads.)

    ## Why is this bad
    0.9981 is 1 in BF16 and 0.99976 is 1 in FP16; atanh(1) is infinite, and so are the gradients of acos and asin at 1.

    ## Example
    ```python
    y = torch.atanh(x.clamp(-0.9999, 0.9999))
    ```

    ## Use instead
    ```python
    y = torch.atanh(x.float().clamp(-0.9999, 0.9999))
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.finfo(dtype).eps.
    """

    code = "G213"
    name = "domain-boundary"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("the angle of a cosine", model_file(
            "return torch.acos(F.cosine_similarity(self.fc(x), x, dim=-1))  # <- G213")),
        Example("a clamp that 16 bits round away", model_file(
            "return torch.atanh(self.fc(x).clamp(-0.9999, 0.9999))  # <- G213")),
        Example("a clamp in 16 bits before an angle in FP32", model_file(
            "return torch.acos(self.fc(x).clamp(-1 + 1e-7, 1 - 1e-7))  # <- G213")),
    )  # fmt: skip
    VALID = (
        Example("a cosine kept off the ends", model_file(
            "return torch.acos(F.cosine_similarity(self.fc(x), x, dim=-1).clamp(-0.999, 0.999))")),
        Example("a clamp in FP32 before an angle", model_file(
            "return torch.acos(self.fc(x).float().clamp(-1 + 1e-7, 1 - 1e-7))")),
        Example("cast up first", model_file("return torch.atanh(self.fc(x).float().clamp(-0.9999, 0.9999))")),
        Example("a clamp that 16 bits can hold", model_file("return torch.atanh(self.fc(x).clamp(-0.9, 0.9))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such op."""
        half = dict(context.sites_in_half(*_ENDS))
        for site in floating_sites(context, *_ENDS):
            if not context.runs or _has_eps(site):
                continue
            runs = tuple(
                run for run in half.get(site, ()) if _reaches_end(run, site) and not is_whole(run.ranges, site, 0)
            )
            if all(_is_at_end(run, site) for run in context.runs):
                yield context.finding(
                    self,
                    site,
                    f"{site.op} of {context.runs[0].ranges.operand(site, 0)}: at the end of its domain it or its "
                    "gradient is infinite in every format; keep the input off the end",
                    chain=chain(context, site),
                )
            elif is_signed(context.runs[0], site):
                yield context.finding(
                    self,
                    site,
                    f"{site.op} of the output of a layer, which leaves its domain: NaN there; bound it first",
                )
            elif runs and not _is_above_by_data(context, site):
                yield context.finding(
                    self,
                    site,
                    f"{site.op} runs in {where_in(runs, site)} and its input can round to the end of the "
                    f"domain ({_next_to_end(site, runs)}): {_AT_END.get(site.op, 'infinite there')}; compute it in "
                    "float32",
                )
            elif lost := tuple(run for run in context.runs if _is_at_end(run, site)):
                dtypes = ", ".join(dict.fromkeys(source_dtype(run, site, 0) or "16 bits" for run in lost))
                yield context.finding(
                    self,
                    site,
                    f"what keeps the input of {site.op} off the end of its domain rounds to that end in {dtypes} "
                    f"(under {recipes_in(lost)}): it or its gradient is infinite there; cast to float32 before it",
                    chain=chain(context, site),
                )
            elif not context.runs[0].ranges.operand(site, 0).is_known and not _is_above_by_data(context, site):
                yield context.finding(
                    self,
                    site,
                    f"nothing keeps the input of {site.op} off the end of its domain, where it or its gradient is "
                    "infinite",
                    severity=Severity.INFO,
                    chain=chain(context, site),
                )


_AT_END = {"acosh": "its gradient is infinite there"}


def _next_to_end(site: Site, runs: tuple[Run, ...]) -> str:
    formats = formats_in(runs, site)
    if _ENDS[site.op] == (0.0, math.inf):
        return ", ".join(f"what is under {f.smallest_subnormal / 2:.2g} is zero in {f}" for f in formats)
    if site.op == "acosh":
        return ", ".join(f"{1 + f.epsilon:.5g} is the first above 1 in {f}" for f in formats)
    return ", ".join(f"{1 - f.epsilon / 2:.5g} is the last below 1 in {f}" for f in formats)


def _is_above_by_data(context: GraphContext, site: Site) -> bool:
    """Whether the numbers of the batch keep the input of a function of positive numbers above the end of its domain, as
    counts do in the likelihood of a count."""
    bounds = context.bounds(context.runs[0])
    low, high = _ENDS[site.op]
    return high == math.inf and bounds is not None and bounds.operand(site, 0).low > low


def _has_eps(site: Site) -> bool:
    return site.op == "logit" and bool(site.attrs.get("eps") or (site.attrs.get("scalars") or {}).get(1))


def _reaches_end(run: Run, site: Site) -> bool:
    found = run.ranges.operand(site, 0)
    low, high = _ENDS[site.op]
    return found.low <= low or (found.high >= high and high < math.inf)


def _is_at_end(run: Run, site: Site) -> bool:
    """Whether the bounds are those of the domain or wider, and not because nothing is known."""
    found = run.ranges.operand(site, 0)
    return found.is_known and _reaches_end(run, site) and (found.low > -1e30 or found.high < 1e30)
