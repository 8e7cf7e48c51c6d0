"""G218: a variance as the difference of two means of squares, a distance by its three terms."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.distances import product_of_distance
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, formats_in
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import is_difference_of_means, where_in

_IN_WINDOWS = (
    "of windows there is no var: subtract the mean of the whole first, which changes no variance, average in float32, "
    "and clamp the difference at zero"
)


class Cancellation(GraphRule):
    """A difference of two nearly equal numbers: E[x^2] - E[x]^2, or a squared distance by its three terms.

    ## What it does
    Recognises a subtraction of the square of a mean from a mean of squares of the same tensor, over an axis, by pooling
    or by a convolution with a window (SSIM), which autocast runs in 16 bits; and squared distances as two sums of
    squares less twice a product, where that product runs in 16 bits.

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
                first = run.ranges.root(site, 0)
                is_windowed = first is not None and first.op.startswith(("conv", "avg_pool"))
                yield context.finding(
                    self,
                    site,
                    "E[x^2] - E[x]^2 cancels where the mean is large against the deviation, and can be negative; "
                    f"{_IN_WINDOWS if is_windowed else 'use var, or subtract the mean first'}",
                )
            if product := product_of_distance(run.ranges, site):
                yield from self._distance(context, site, product)

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
