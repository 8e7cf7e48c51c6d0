"""G203: an exponential whose input nothing bounds."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._exponentials import (
    FP16_LIMIT,
    FP32_LIMIT,
    POWERS,
    factor_without_sign,
    is_exponential,
    is_kept_small,
    is_unbounded,
    limit_of,
    may_pass,
    reach_in_words,
    reach_of_data,
)
from amptune_rules.graph._numeric import chain, floating_sites, is_merged, reads_weights_alone, runs_in
from amptune_rules.graph.causes.fp16_exponentials import in_fp16, read_in_fp16
from amptune_rules.graph.causes.infinite_exponentials import harmful


class ExpOverflow(GraphRule):
    """An exponential in FP16 whose input may pass 11.09, or in any format one that is then summed or logged.

    ## What it does
    Follows the ops and literals that lead to each exp; reports it in FP16 when nothing bounds its input by 11.09, and
    in every format when exp is normalised or logged by hand (softmax, softplus, logsumexp without the maximum
    subtracted), divided by, or raised again, and nothing bounds its input by 88.7. Any other exp without a bound is
    information. Under CUDA autocast exp itself runs in FP32; where a product reads the result in FP16, as it is or
    times a number, it is reported as in FP16.

    ## Why is this bad
    exp(11.1) is infinite in FP16, exp(88.8) in BF16 and FP32. Infinity divided by infinity is NaN.

    ## Example
    ```python
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    ```

    ## Use instead
    ```python
    weights = scores.softmax(-1)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Exposing Numerical Bugs in Deep Learning with Gradient Back-propagation (ESEC/FSE 2021).
    """

    code = "G203"
    name = "exp-overflow"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("features of a kernel without their maximum, for a product in FP16", model_file(
            """
            features = torch.exp(self.fc(x)) / 8  # <- G203
            return features @ features.t()
            """)),
        Example("softmax by hand", model_file(
            """
            e = torch.exp(self.fc(x))  # <- G203
            return e / e.sum(-1, keepdim=True)
            """)),
        Example("the softmax of bags by hand", model_file(
            """
            e = torch.exp(self.fc(x))  # <- G203
            total = torch.zeros(4, 64, dtype=e.dtype, device=x.device).index_add(0, bag, e)
            return e / total[bag].clamp(min=1e-6)
            """, takes="x, bag", batch="(torch.randn(32, 64), torch.arange(32) % 4)")),
        Example("softplus by hand", model_file("return torch.log(1 + torch.exp(self.fc(x)))  # <- G203")),
        Example("exp in a half model", model_file("return torch.exp(self.fc(x))  # <- G203", cast=".half()",
                                                  batch="torch.randn(32, 64).half()")),
    )  # fmt: skip
    VALID = (
        Example("features of a kernel less their maximum", model_file(
            """
            h = self.fc(x)
            features = torch.exp(h - h.amax()) / 8
            return features @ features.t()
            """)),
        Example("a kernel of squared distances by three terms", model_file(
            """
            h = self.fc(x)
            squares = h.pow(2).sum(1)
            return torch.exp(-(squares[:, None] - 2 * h @ h.t() + squares[None, :]) / 8)
            """)),
        Example("maximum subtracted", model_file(
            """
            h = self.fc(x)
            e = torch.exp(h - h.amax(-1, keepdim=True))
            return e / e.sum(-1, keepdim=True)
            """)),
        Example("a bounded input", model_file("return torch.exp(torch.tanh(self.fc(x)))", cast=".half()",
                                              batch="torch.randn(32, 64).half()")),
        Example("labels of the batch as exponents", model_file(
            "gains = torch.pow(2.0, x.abs().floor()) - 1\nreturn self.fc(x) * gains"), options={"evidence": True}),
        Example("exp in a denominator alone", model_file("return 1 / (1 + torch.exp(-self.fc(x).clamp(min=-80)))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each exp: what is harmful in every format first, else the format that overflows."""
        half = dict(context.sites_in_half(*POWERS))
        for site in floating_sites(context, *POWERS):
            if not context.runs or not is_exponential(site) or reads_weights_alone(context, site):
                continue
            unbounded = is_unbounded(context, site)
            if unbounded and is_kept_small(context, site):
                continue
            if found := self._exponential(context, site, half.get(site, ()), unbounded):
                yield found

    def _exponential(self, context: GraphContext, site: Site, half: tuple[Run, ...], unbounded: bool) -> Finding | None:
        signless = factor_without_sign(context, site) if unbounded else None
        if unbounded and signless is None and (found := harmful(self, context, site)):
            return found
        runs = tuple(run for run in runs_in(half, site, Format.FP16)
                     if may_pass(run, site, FP16_LIMIT) and reach_of_data(context, site) > FP16_LIMIT)  # fmt: skip
        if runs:
            return in_fp16(self, context, site, runs)
        if not unbounded or is_merged(context, site):
            return None
        if signless is None and (found := read_in_fp16(self, context, site)):
            return found
        return context.finding(
            self,
            site,
            f"{reach_in_words(context.runs[0], site, signless)}: it overflows over {limit_of(site, FP32_LIMIT):.2f} in "
            "every format; clamp it where large inputs can come",
            severity=Severity.INFO,
            limit=round(limit_of(site, FP32_LIMIT), 2),
            chain=chain(context, site),
        )
