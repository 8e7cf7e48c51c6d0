"""G204: a logarithm of what can be zero or less."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._logarithms import is_off_end_in_batch, is_share_of_more, reaches_end
from amptune_rules.graph._numeric import (
    chain,
    ends_as_integers,
    eps_before,
    floating_sites,
    is_signed,
    reads_weights_alone,
)
from amptune_rules.graph.causes import hidden_logarithms, logarithms_at_end, logarithms_of_batch
from amptune_rules.graph.causes.determinants import determinant_behind


class LogDomain(GraphRule):
    """A logarithm whose input can be zero, below zero, or is protected by an eps that the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each log, log2, log10 and log1p, and rounds them as each recipe would.
    Of a tensor of the batch it takes the numbers that `make_batch` gives.
    xlogy is reported where its second operand can be zero and has a gradient, and the logarithm of a determinant of
    16 x 16 and more.

    ## Why is this bad
    A softmax or sigmoid reaches exactly 0 from logits about 104 apart in FP32 and 17 in FP16; its logarithm is -inf
    and the gradient NaN. An eps under 3e-8 is zero in FP16, so `log(p + 1e-8)` is `log(p)` there.

    ## Example
    ```python
    loss = -torch.log(torch.softmax(logits, -1))
    ```

    ## Use instead
    ```python
    loss = -torch.log_softmax(logits, -1)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Exposing Numerical Bugs in Deep Learning with Gradient Back-propagation (ESEC/FSE 2021): 12 of 22 PyTorch defects.
    """

    code = "G204"
    name = "log-domain"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("log of softmax", model_file("return torch.log(torch.softmax(self.fc(x), -1))  # <- G204")),
        Example("log of one minus sigmoid", model_file("return torch.log(1 - torch.sigmoid(self.fc(x)))  # <- G204")),
        Example("an eps that FP16 cannot hold", model_file(
            "return torch.log(torch.relu(self.fc(x)) + 1e-8)  # <- G204")),
        Example("counts of the batch, some of which are zero", model_file(
            "return self.fc(torch.log(x))  # <- G204", batch="torch.arange(2048.0).view(32, 64) % 7"),
            options={"evidence": True}),
        Example("the other half of a logit of pixels, some of which are one", model_file(
            "return self.fc(torch.log1p(-x))  # <- G204", batch="torch.arange(2048.0).view(32, 64) % 5 / 4"),
            options={"evidence": True}),
    )  # fmt: skip
    VALID = (
        Example("log_softmax", model_file("return torch.log_softmax(self.fc(x), -1)")),
        Example("an eps that FP16 can hold", model_file("return torch.log(torch.relu(self.fc(x)) + 1e-4)")),
        Example("eps added in FP32", model_file("return torch.log(torch.softmax(self.fc(x), -1) + 1e-8)")),
        Example("1 + exp of a bounded input", model_file(
            "return torch.log(1 + torch.exp(torch.tanh(self.fc(x))))")),
        Example("counts of the batch, from one on", model_file(
            "return self.fc(torch.log(x))", batch="1 + torch.arange(2048.0).view(32, 64) % 7"),
            options={"evidence": True}),
        Example("counts of the batch, whose zeros are left out", model_file(
            "return self.fc(torch.where(x > 0, torch.log(x), -1.0))", batch="torch.arange(2048.0).view(32, 64) % 7"),
            options={"evidence": True}),
        Example("the slope of a spline between knots", model_file(
            """
            t, d = torch.sigmoid(self.fc(x)), 1e-3 + F.softplus(self.fc(x * x))
            return torch.log(d[:, :63] * t[:, 1:].square() + d[:, 1:] * (1 - t[:, 1:]).square())
            """), options={"recipes": ("fp32",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each logarithm, for the plainest reason."""
        for site in floating_sites(context, "log", "log2", "log10", "log1p"):
            if told := determinant_behind(context, site):
                yield context.finding(self, site, told[0], severity=told[1], chain=chain(context, site))
            elif reads_weights_alone(context, site):
                yield from logarithms_at_end.of_parameter(self, context, site)
            elif not ends_as_integers(context, site):
                yield from self._logarithm(context, site)
        yield from hidden_logarithms.of_products(self, context)
        yield from hidden_logarithms.of_nothing(self, context)

    def _logarithm(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        bad = tuple(
            run
            for run in context.runs
            if reaches_end(site, run.ranges.operand(site, 0))
            and not is_share_of_more(run, site)
            and not is_off_end_in_batch(context, site)
        )
        eps = eps_before(context.runs[0], site) if context.runs else None
        if bad and eps is not None:
            yield logarithms_at_end.rounded_eps(self, context, site, eps, bad)
        elif bad:
            yield logarithms_at_end.unprotected(self, context, site, bad)
        elif context.runs and is_signed(context.runs[0], site):
            yield logarithms_at_end.of_layer(self, context, site)
        elif context.runs:
            yield from logarithms_of_batch.of_batch_itself(self, context, site)
            yield from logarithms_of_batch.of_zeros(self, context, site)
            yield from logarithms_at_end.lost_beside(self, context, site)
            yield from logarithms_at_end.of_spectrum(self, context, site)
            yield from logarithms_at_end.of_signed_product(self, context, site)
            yield from logarithms_at_end.of_long_product(self, context, site)
