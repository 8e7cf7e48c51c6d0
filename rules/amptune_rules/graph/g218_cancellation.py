"""G218: a variance as the difference of two means of squares."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import is_difference_of_means


class Cancellation(GraphRule):
    """E[x^2] - E[x]^2: a difference of two nearly equal numbers.

    ## What it does
    Recognises a subtraction of the square of a mean from a mean of squares of the same tensor, over an axis, by pooling
    or by a convolution with a window (SSIM), which autocast runs in 16 bits.

    ## Why is this bad
    Where the mean is large against the deviation, the leading digits cancel and what is left are rounding errors: in
    BF16 the result has no digit from a ratio of 16, in FP32 from 3000. It can even be negative, and its root NaN.

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
    )  # fmt: skip
    VALID = (
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
                yield context.finding(
                    self,
                    site,
                    "E[x^2] - E[x]^2 cancels where the mean is large against the deviation, and can be "
                    "negative; use var, or subtract the mean first",
                )
