"""G203: an exponential whose input nothing bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import runs_in, where_in

FP16_LIMIT = math.log(Format.FP16.max)
FP32_LIMIT = math.log(Format.FP32.max)


class ExpOverflow(GraphRule):
    """An exponential in FP16 whose input may pass 11.09, or in any format one that is then summed or logged.

    ## What it does
    Follows the ops and literals that lead to each exp; reports it in FP16 when nothing bounds its input by 11.09, and
    in every format when exp is normalised or logged by hand (softmax, softplus, logsumexp without the maximum
    subtracted) and nothing bounds its input by 88.7. Under CUDA autocast exp itself runs in FP32.

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
    INVALID = (
        Example("softmax by hand", model_file(
            """
            e = torch.exp(self.fc(x))  # <- G203
            return e / e.sum(-1, keepdim=True)
            """)),
        Example("softplus by hand", model_file("return torch.log(1 + torch.exp(self.fc(x)))  # <- G203")),
        Example("exp in a half model", model_file("return torch.exp(self.fc(x))  # <- G203", cast=".half()",
                                                  batch="torch.randn(32, 64).half()")),
    )  # fmt: skip
    VALID = (
        Example("maximum subtracted", model_file(
            """
            h = self.fc(x)
            e = torch.exp(h - h.amax(-1, keepdim=True))
            return e / e.sum(-1, keepdim=True)
            """)),
        Example("a bounded input", model_file("return torch.exp(torch.tanh(self.fc(x)))", cast=".half()",
                                              batch="torch.randn(32, 64).half()")),
        Example("exp alone, which autocast runs in FP32", model_file("return torch.exp(self.fc(x))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each exp: the pattern in every format first, else the format that overflows."""
        for site, half in self._exponentials(context):
            if self._is_normalised(context, site) and _may_pass(context.runs[0], site, FP32_LIMIT):
                yield context.finding(
                    self,
                    site,
                    f"{site.op} is normalised by hand and nothing bounds its input: it overflows over 88.7 in every "
                    "format (11.09 in fp16), and inf / inf is NaN; use softmax, logsumexp or softplus",
                    limit=round(FP32_LIMIT, 2),
                )
                continue
            runs = tuple(run for run in runs_in(half, site, Format.FP16) if _may_pass(run, site, FP16_LIMIT))
            if runs:
                certain = all(run.ranges.operand(site, 0).low > FP16_LIMIT for run in runs)
                yield context.finding(
                    self,
                    site,
                    f"{site.op} runs in {where_in(runs, site)} and overflows to infinity for inputs over "
                    f"{FP16_LIMIT:.2f}; nothing in the graph bounds its input",
                    severity=Severity.ERROR if certain else None,
                    limit=round(FP16_LIMIT, 2),
                    format="fp16",
                )

    def _exponentials(self, context: GraphContext) -> Iterable[tuple[Site, tuple[Run, ...]]]:
        in_half = dict(context.sites_in_half("exp", "expm1", "exp2"))
        return [(site, in_half.get(site, ())) for site in context.graph if site.op in ("exp", "expm1", "exp2")]

    def _is_normalised(self, context: GraphContext, site: Site) -> bool:
        """Whether the exponential is summed, or logged after an addition: a softmax, softplus or logsumexp."""
        consumers = context.graph.consumers(site.id)
        later = [after for consumer in consumers for after in context.graph.consumers(consumer.id)]
        logged = any(each.op == "log1p" for each in consumers) or (
            any(each.op in ("add", "sum") for each in consumers) and any(each.op == "log" for each in later)
        )
        divided = any(each.op == "sum" for each in consumers) and any(each.op == "div" for each in (*consumers, *later))
        return logged or divided


def _may_pass(run: Run, site: Site, limit: float) -> bool:
    scale = math.log(2.0) if site.op == "exp2" else 1.0
    return run.ranges.operand(site, 0).high * scale > limit
