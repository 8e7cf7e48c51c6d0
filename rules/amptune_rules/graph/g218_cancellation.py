"""G218: a variance as the difference of two means of squares, a distance by its three terms."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.bounds.relations.distances import product_of_distance
from amptune.core.bounds.relations.variances import spread_of
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, formats_in
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._means import is_difference_of_means
from amptune_rules.graph._numeric import where_in

_IN_WINDOWS = (
    "of windows there is no var: subtract the mean of the whole first, which changes no variance, average in float32, "
    "and clamp the difference at zero"
)


class Cancellation(GraphRule):
    """A difference of two nearly equal numbers: E[x^2] - E[x]^2, or a squared distance by its three terms.

    ## What it does
    Recognises a subtraction of the square of a mean from a mean of squares of the same tensor, over an axis, by pooling
    or by a convolution with a window (SSIM), which autocast runs in 16 bits, in two terms or in more; squared distances
    as two sums of squares less twice a product, where that product runs in 16 bits; and `sqrt(1 + y) - 1` in 16 bits
    that is multiplied up right after it.

    ## Why is this bad
    Where the mean is large against the deviation, the leading digits cancel and what is left are rounding errors: in
    BF16 the result has no digit from a ratio of 16, in FP32 from 3000. It can even be negative, and its root NaN. A
    distance by its three terms has no digit between points that are nearer than 9 % of their length in BF16.

    ## Example
    ```python
    variance = (x * x).mean(-1) - x.mean(-1) ** 2
    ```

    ## Use instead
    ```python
    variance = x.var(-1, unbiased=False)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Higham, Accuracy and Stability of Numerical Algorithms, section 1.9.
    """

    code = "G218"
    name = "cancellation"
    severity = Severity.INFO
    by_calls = True
    INVALID = (
        Example("variance by two means", model_file(
            """
            h = self.fc(x)
            return (h * h).mean(-1) - h.mean(-1) ** 2  # <- G218
            """)),
        Example("local variances by a window", model_file(
            """
            h = x.view(8, 1, 16, 16)
            m = F.conv2d(h, self.w)
            return self.fc(x).sum() + F.conv2d(h * h, self.w) - m.pow(2), F.conv2d(h * h, self.w) - m.pow(2)  # <- G218
            """, init="self.fc = nn.Linear(256, 1)\nself.register_buffer('w', torch.ones(1, 1, 5, 5) / 25)",
            batch="torch.rand(8, 256)", loss="output[0].mean() + output[1].mean()")),
        Example("means of the largest numbers, as in entmax", model_file(
            """
            h = self.fc(x).sort(-1, descending=True).values
            rho = torch.arange(1, 65, device=x.device, dtype=h.dtype)
            mean, mean_sq = h.cumsum(-1) / rho, (h ** 2).cumsum(-1) / rho
            return mean_sq - mean ** 2  # <- G218
            """)),
        Example("a part of the squares", model_file(
            """
            h = self.fc(x)
            return h.square()[:, :32].mean(1) - h[:, :32].mean(1).pow(2)  # <- G218
            """)),
        Example("sums divided by their count", model_file(
            """
            h = self.fc(x)
            return (h * h).sum(-1) / 64 - (h.sum(-1) / 64) ** 2  # <- G218
            """)),
        Example("distances by a product in 16 bits", model_file(
            """
            a, b = self.fc(x), x
            return a.pow(2).sum(1, keepdim=True) - 2 * a @ b.t() + b.pow(2).sum(1)  # <- G218
            """)),
        Example("distances out of a Gram matrix and its diagonal", model_file(
            """
            g = self.fc(x) @ self.fc(x).t()
            squares = torch.diagonal(g)
            return squares[:, None] - 2 * g + squares[None]  # <- G218
            """)),
        Example("distances by a product that is added in place", model_file(
            """
            a = self.fc(x)
            squares = (a * a).sum(1)
            near = squares[:, None] + squares[None, :]
            return near.addmm(a, a.t(), beta=1, alpha=-2)  # <- G218
            """)),
    )  # fmt: skip
    VALID = (
        Example("distances by a product in FP32", model_file(
            """
            a, b = self.fc(x).float(), x
            with torch.autocast(x.device.type, enabled=False):
                return a.pow(2).sum(1, keepdim=True) - 2 * a @ b.t() + b.pow(2).sum(1)
            """)),
        Example("a product beside squares of something else", model_file(
            """
            a, b = self.fc(x), x
            return (a - b).pow(2).sum(1, keepdim=True) - 2 * a @ b.t() + (a + b).pow(2).sum(1)
            """)),
        Example("quotients by two counts", model_file(
            """
            h = self.fc(x)
            return (h * h).sum(-1) / 64 - (h.sum(-1) / 32) ** 2
            """)),
        Example("squares of one part, and the mean of another one", model_file(
            """
            h = self.fc(x)
            return h.square()[:, :32].mean(1) - h[:, 32:].mean(1).pow(2)
            """)),
        Example("var", model_file("return self.fc(x).var(-1, unbiased=False)")),
        Example("deviations squared", model_file(
            """
            h = self.fc(x)
            return ((h - h.mean(-1, keepdim=True)) ** 2).mean(-1)
            """)),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such subtraction."""
        if not context.runs:
            return
        run = context.runs[0]
        for site in context.graph:
            if site.op == "sub" and is_difference_of_means(run, site):
                yield self._variance(context, site, "E[x^2] - E[x]^2", run.ranges.root(site, 0))
            elif (squares := _variance(run, site)) is not None:
                yield self._variance(context, site, "a sum of squares less products of sums", squares)
            if product := product_of_distance(run.ranges, site):
                yield from self._distance(context, site, product)
            if raised := _raised_after(run, site):
                yield from self._root_less_one(context, site, raised)

    def _variance(self, context: GraphContext, site: Site, called: str, squares: Site | None) -> Finding:
        is_windowed = squares is not None and squares.op.startswith(("conv", "avg_pool"))
        return context.finding(
            self,
            site,
            f"{called} cancels where the mean is large against the deviation, and can be negative; "
            f"{_IN_WINDOWS if is_windowed else 'use var, or subtract the mean first'}",
        )

    def _root_less_one(self, context: GraphContext, site: Site, raised: float) -> Iterable[Finding]:
        runs = tuple(each for each in context.runs if each.dtypes[site.id].in_half)
        errors = {each: each.epsilon / 2 * raised for each in formats_in(runs, site)}
        if runs and max(errors.values()) >= COARSE:
            told = ", ".join(f"{error:.2g} in {each}" for each, error in errors.items())
            yield context.finding(
                self,
                site,
                f"sqrt(1 + y) - 1 in {where_in(runs, site)}: where y is small it is the rounding of the root, and is "
                f"multiplied by {raised:g} after it: an error of {told}; write y / (sqrt(1 + y) + 1), or compute it "
                "in float32",
            )

    def _distance(self, context: GraphContext, site: Site, product: Site) -> Iterable[Finding]:
        runs = tuple(each for each in context.runs if each.dtypes[product.id].in_half)
        if not runs:
            return
        near = ", ".join(
            f"{math.sqrt(each.epsilon):.0%} of their length in {each}" for each in formats_in(runs, product)
        )
        yield context.finding(
            self,
            site,
            f"|a|^2 - 2ab + |b|^2 with a product in {where_in(runs, product)}: the distance of points nearer than "
            f"{near} is a rounding error, and can be negative; compute the product in float32, or use torch.cdist",
        )


def _variance(run: Run, site: Site) -> Site | None:
    """The average of squares in a sum of terms that is a variance, and no part of such a sum itself."""
    found = spread_of(run.ranges, site)
    if found is None or not found.is_variance:
        return None
    whole = any(spread_of(run.ranges, after) for after in run.ranges.graph.consumers(site.id))
    return None if whole or _adds_to_variance(run, site) else found.products


def _adds_to_variance(run: Run, site: Site) -> bool:
    """Whether a sum is E[x^2] - E[x]^2 and more, such as an eps: the difference itself is told."""
    parts = (run.ranges.root(site, side) for side in (0, 1))
    return any(
        part is not None and ((part.op == "sub" and is_difference_of_means(run, part)) or
                              (part.op in ("add", "sub") and _adds_to_variance(run, part)))
        for part in parts
    )  # fmt: skip


FAR = 2.0
"""What is under the root from here on leaves a result with most of its digits."""
COARSE = 0.05
"""An error by which the rounding of a number next to 1 is told, once it is multiplied by what comes after."""


def _raised_after(run: Run, site: Site) -> float:
    """By how much ``sqrt(1 + y) - 1`` is multiplied right after it; 0 for anything else."""
    numbers = site.attrs.get("scalars") or {}
    root = run.ranges.root(site) if site.op in ("sub", "add") and len(numbers) == 1 else None
    inner = run.ranges.root(root) if root is not None and root.op == "sqrt" else None
    is_one_less = numbers.get(1) == (1 if site.op == "sub" else -1)
    if not is_one_less or inner is None or inner.op != "add" or 1 not in (inner.attrs.get("scalars") or {}).values():
        return 0.0
    if run.ranges[inner.id].low >= FAR:
        return 0.0
    return max((_factor(after) for after in run.ranges.graph.consumers(site.id)), default=0.0)


def _factor(site: Site) -> float:
    number = (site.attrs.get("scalars") or {}).get(1)
    if not isinstance(number, int | float) or not number:
        return 0.0
    return {"mul": abs(float(number)), "div": 1 / abs(float(number))}.get(site.op, 0.0)
