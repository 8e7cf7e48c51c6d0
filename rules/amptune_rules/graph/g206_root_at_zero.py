"""G206: a square root where its argument can be zero."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.distances import product_of_distance
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.intervals import Range
from amptune.core.ops import Family, op_named
from amptune.core.range_rules import exponent_of
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import (
    CLOSED_AT_ZERO,
    chain,
    eps_before,
    floating_sites,
    gives_zeros,
    is_difference_of_means,
    is_guarded_after,
    is_signed,
    is_signed_sum,
    is_stored,
    lost_eps,
    of_batch,
    reads_weights_alone,
)


class RootAtZero(GraphRule):
    """A sqrt, rsqrt or fractional power of what can be zero or less, or whose eps the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each sqrt, rsqrt and power below 1, rounded as each recipe would, and to
    powers such as 1.5, which are NaN below zero. A variance as E[x^2] - E[x]^2 is rounded below zero, and below an eps
    that is small against the rounding. The root of another difference is information where nothing says that it stays
    above zero. Norm layers with eps=0 are reported too.

    ## Why is this bad
    The gradient of sqrt at zero is infinite, and rsqrt(0) is infinite itself; times a zero gradient that is NaN. An
    eps under 3e-8 is zero in FP16.

    ## Example
    ```python
    distance = torch.sqrt(((a - b) ** 2).mean(-1) + 1e-8)
    ```

    ## Use instead
    ```python
    distance = torch.sqrt(((a - b).float() ** 2).mean(-1) + 1e-8)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.autograd notes on sqrt; Exposing Numerical Bugs in Deep Learning (ESEC/FSE 2021), 10 defects of this kind.
    """

    code = "G206"
    name = "root-at-zero"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("an eps that FP16 cannot hold", model_file(
            """
            h = self.fc(x)
            return torch.sqrt((h * h).mean(-1) + 1e-8)  # <- G206
            """)),
        Example("no eps", model_file(
            """
            h = self.fc(x)
            return torch.sqrt((h * h).sum(-1))  # <- G206
            """)),
        Example("a variance by two means, whose eps is below their rounding", model_file(
            """
            h = self.fc(x)
            mean = h.mean(-1, keepdim=True)
            var = (h * h).mean(-1, keepdim=True) - mean * mean
            return (h - mean) / torch.sqrt(var + 1e-5)  # <- G206
            """)),
        Example("a difference of two means", model_file(
            """
            k = torch.exp(self.fc(x))
            return torch.sqrt(k[:4].mean() + k[4:].mean() - 2 * k.mean())  # <- G206
            """)),
        Example("an eps that FP16 cannot hold, added to a smoothed energy", model_file(
            "return x / (1e-12 + self.fc(x * x)) ** self.alpha  # <- G206",
            init="self.fc = nn.Linear(64, 64)\nself.alpha = nn.Parameter(torch.full((64,), 0.96))")),
        Example("an inverse root of relu", model_file(
            "return torch.rsqrt(F.relu(self.fc(x)))  # <- G206")),
        Example("a distance by its three terms", model_file(
            """
            h = self.fc(x)
            squares = h.pow(2).sum(1)
            return torch.sqrt(squares[:, None] - 2 * h @ h.t() + squares[None, :])  # <- G206
            """)),
    )  # fmt: skip
    VALID = (
        Example("a root of relu, which lets no gradient through at zero", model_file(
            "return torch.sqrt(F.relu(self.fc(x)))")),
        Example("a difference that its terms keep above zero", model_file(
            "return torch.sqrt(2 - torch.tanh(self.fc(x)))")),
        Example("a distance by its three terms, clamped", model_file(
            """
            h = self.fc(x)
            squares = h.pow(2).sum(1)
            return torch.sqrt((squares[:, None] - 2 * h @ h.t() + squares[None, :]).clamp_min(1e-6))
            """)),
        Example("eps added in FP32", model_file(
            """
            h = self.fc(x).float()
            return torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-8) * h
            """)),
        Example("an eps that FP16 can hold", model_file(
            """
            h = self.fc(x)
            return torch.sqrt((h * h).mean(-1) + 1e-5)
            """)),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each root."""
        if not context.runs:
            return
        for site in floating_sites(context, "sqrt", "rsqrt", "pow"):
            if _is_root(site) and not reads_weights_alone(context, site):
                yield from self._judged(context, site)
            elif site.op == "pow" and _is_fractional(site) and _may_be_negative(context.runs[0], site):
                yield context.finding(
                    self,
                    site,
                    f"{_named(site)} of what can be negative, which is NaN there",
                    chain=chain(context, site),
                )
        yield from self._norms(context)

    def _norms(self, context: GraphContext) -> Iterable[Finding]:
        """Norm layers whose eps was set to zero: they divide by the root of a variance."""
        for site in context.graph:
            if op_named(site.op).family is Family.NORM and site.attrs.get("eps") == 0:
                yield context.finding(
                    self,
                    site,
                    f"{site.op} with eps=0 divides by a deviation: NaN where all inputs are equal",
                )

    def _judged(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        bad = tuple(run for run in context.runs if _touches_zero(run.ranges.operand(site, 0)))
        eps = eps_before(context.runs[0], site)
        exponent = _exponent(site)
        is_open = exponent is not None
        breaks = exponent is not None and (exponent < 0 or not context.train or site.inputs[0].requires_grad)
        if bad and eps is not None and breaks and not is_signed_sum(context.runs[0], site):
            yield context.finding(
                self,
                site,
                f"the eps of {eps:g} under the root rounds to zero under {recipes_in(bad)}: at zero the gradient of "
                "sqrt, and rsqrt itself, is infinite",
                eps=eps,
                chain=chain(context, site),
            )
        elif is_open and _cancels(context.runs[0], site):
            yield context.finding(
                self,
                site,
                f"{site.op} of a difference that rounding can make negative (E[x^2] - E[x]^2): NaN; use var or std",
                chain=chain(context, site),
            )
        elif is_open and eps is not None and (below := _runs_below_zero(context, site, eps)):
            largest = min(mean for _, mean in below)
            yield context.finding(
                self,
                site,
                f"{site.op} of E[x^2] - E[x]^2 + {eps:g}: rounding takes the difference below -{eps:g} from means over "
                f"{largest:.1g} on (under {recipes_in(tuple(each for each, _ in below))}), and the result is NaN; use "
                "var, or subtract the mean first",
                eps=eps,
                chain=chain(context, site),
            )
        elif is_open and _is_of_distance(context.runs[0], site):
            yield context.finding(
                self,
                site,
                f"{site.op} of |a|^2 - 2ab + |b|^2, which rounding makes negative for near points: NaN; clamp it above "
                "zero, or use torch.cdist",
                chain=chain(context, site),
            )
        elif bad and len(bad) == len(context.runs) and breaks and not _is_undone(context, site):
            yield context.finding(
                self,
                site,
                f"{_named(site)} of what can be exactly zero, without an eps: "
                f"{'it' if (_exponent(site) or 0) < 0 else 'its gradient'} is infinite there",
                severity=None if (_exponent(site) or 0) < 0 and gives_zeros(bad[0], site) else Severity.INFO,
                chain=chain(context, site),
            )
        elif is_open and _is_of_difference(context, site):
            yield context.finding(
                self,
                site,
                f"{_named(site)} of a difference, which can be below zero as far as its terms show, and is NaN there; "
                "clamp it",
                severity=Severity.INFO,
                chain=chain(context, site),
            )
        elif is_signed(context.runs[0], site):
            yield context.finding(
                self,
                site,
                f"{_named(site)} of the output of a layer, which has both signs: NaN below zero",
                chain=chain(context, site),
            )
        else:
            yield from self._lost(context, site)

    def _lost(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """An eps that no format of 16 bits has, added to what the user's code alone keeps above zero."""
        eps, runs = lost_eps(context, site)
        if runs:
            yield context.finding(
                self,
                site,
                f"the eps of {eps:g} under {_named(site)} rounds to zero under {recipes_in(runs)}: it guards nothing "
                "where what it is added to is zero; add it in float32",
                severity=Severity.INFO,
                eps=eps,
                chain=chain(context, site),
            )


def _exponent(site: Site) -> float | None:
    """The literal exponent; ``None`` for one that is a tensor."""
    return {"sqrt": 0.5, "rsqrt": -0.5}.get(site.op, exponent_of(site))


def _is_root(site: Site) -> bool:
    """Roots, negative powers, and powers with a tensor as exponent, which are NaN for a negative base as roots are."""
    exponent = _exponent(site)
    if exponent is None:
        return site.op == "pow" and 0 not in (site.attrs.get("scalars") or {})
    return exponent < 1 and exponent != 0 and not (exponent < 0 and exponent == int(exponent) and exponent % 2 == 0)


def _is_fractional(site: Site) -> bool:
    exponent = _exponent(site)
    return exponent is not None and exponent > 1 and exponent != int(exponent)


def _may_be_negative(run: Run, site: Site) -> bool:
    return is_signed(run, site) or -1e30 < run.ranges.operand(site, 0).low < 0


def _named(site: Site) -> str:
    exponent = _exponent(site)
    if site.op != "pow":
        return site.op
    return "a power with a tensor as exponent" if exponent is None else f"the power of {exponent:.3g}"


def _touches_zero(found: Range) -> bool:
    return found.is_known and -1e30 < found.low <= 0


def _cancels(run: Run, site: Site) -> bool:
    root = run.ranges.root(site)
    return root is not None and root.op == "sub" and is_difference_of_means(run, root)


def _runs_below_zero(context: GraphContext, site: Site, eps: float) -> list[tuple[Run, float]]:
    """The runs in which E[x^2] - E[x]^2 + eps goes below zero for numbers of ordinary size, with the mean from which it
    does: each mean is off by half an ulp of the narrowest format that it was rounded to."""
    found = []
    for run in context.runs:
        total = run.ranges.root(site)
        difference = run.ranges.root(total) if total is not None and total.op == "add" else None
        if difference is None or difference.op != "sub" or not is_difference_of_means(run, difference):
            continue
        squared = run.ranges.root(difference, 1)
        parts = [difference, run.ranges.root(difference, 0), squared and run.ranges.root(squared, 0)]
        dtypes = [dtype for part in parts if part is not None for dtype in run.dtypes[part.id].outputs[:1]]
        coarsest = max(Format.parse(dtype).epsilon for dtype in dtypes if dtype in ("float32", *HALF))
        largest = math.sqrt(2 * eps / coarsest)
        if largest < 1:
            found.append((run, largest))
    return found


def _is_of_difference(context: GraphContext, site: Site) -> bool:
    """Whether a root is taken of a - b where nothing says that a is larger, not even the numbers of the batch."""
    root = context.runs[0].ranges.root(site)
    if root is None or root.op != "sub" or is_stored(context, root):
        return False
    return context.runs[0].ranges.operand(site, 0).low < 0 and of_batch(context, site).low < 0


def _is_undone(context: GraphContext, site: Site) -> bool:
    """Whether an infinity at zero goes no further: replaced behind the site, or, of a gradient alone, in the relu of a
    layer's output, which lets no gradient through where it gives zero."""
    if is_guarded_after(context, site):
        return True
    run, rises = context.runs[0], (_exponent(site) or 0) > 0
    root = run.ranges.root(site)
    return rises and root is not None and root.op in CLOSED_AT_ZERO and is_signed(run, root)


def _is_of_distance(run: Run, site: Site) -> bool:
    root = run.ranges.root(site)
    return root is not None and product_of_distance(run.ranges, root) is not None
