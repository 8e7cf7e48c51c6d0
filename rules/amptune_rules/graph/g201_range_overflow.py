"""G201: a number or a bound that FP16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import runs_in, where_in

_FILLS = ("masked_fill", "index_put", "full_like", "clamp")
_ARITHMETIC = ("add", "sub", "where")
LIMIT = Format.FP16.max


class RangeOverflow(GraphRule):
    """A literal over 65504 in an op that runs in FP16, or a result that certainly is over it.

    ## What it does
    Looks at the numbers that the code gives to ops which run in FP16, and at results whose lower bound (upper bound
    for negative ones) already lies outside FP16 whatever the inputs are.

    ## Why is this bad
    masked_fill raises: "value cannot be converted to type c10::Half without overflow". An addition or where gives
    an infinity, and a row of a softmax that is masked everywhere gives NaN.

    ## Example
    ```python
    scores = (q @ k.transpose(-2, -1)).masked_fill(mask, -1e9)
    ```

    ## Use instead
    ```python
    scores = q @ k.transpose(-2, -1)
    scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    transformers pull request 17306.
    """

    code = "G201"
    name = "range-overflow"
    severity = Severity.ERROR
    INVALID = (
        Example("a mask of -1e9 under fp16 autocast", model_file(
            """
            scores = self.fc(x) @ x.T
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, -1e9).softmax(-1)  # <- G201
            """)),
        Example("a large number added in fp16", model_file("return self.fc(x) + 1e6  # <- G201")),
    )  # fmt: skip
    VALID = (
        Example("minus infinity", model_file(
            """
            scores = self.fc(x) @ x.T
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, float("-inf")).softmax(-1)
            """)),
        Example("scores cast up first", model_file(
            """
            scores = (self.fc(x) @ x.T).float()
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, -1e9).softmax(-1)
            """)),
        Example("the same number in bf16", model_file("return self.fc(x) + 1e6"),
                options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op."""
        for site, half in context.sites_in_half(*_FILLS, *_ARITHMETIC):
            runs = runs_in(half, site, Format.FP16)
            if not runs:
                continue
            literal = next((value for value in _literals(site) if LIMIT < abs(value) < float("inf")), None)
            if literal is not None:
                effect = "raises" if site.op in _FILLS else "gives infinity"
                yield context.finding(
                    self,
                    site,
                    f"{literal:g} is outside of fp16 (65504): this {site.op} {effect} in {where_in(runs, site)}; use "
                    "torch.finfo(x.dtype).min, or float32",
                    severity=Severity.ERROR if site.op in _FILLS else Severity.WARNING,
                    value=literal,
                    format="fp16",
                )
            elif any(_is_outside(run, site) for run in runs):
                yield context.finding(
                    self,
                    site,
                    f"the result of this {site.op} is always over 65504, infinity in {where_in(runs, site)}",
                    format="fp16",
                )


def _literals(site: Site) -> list[float]:
    named = [site.attrs.get(name) for name in ("value", "fill_value", "min", "max")]
    found = [*(site.attrs.get("scalars") or {}).values(), *named]
    return [float(value) for value in found if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _is_outside(run: Run, site: Site) -> bool:
    """Whether the bound was finite before it was rounded to FP16 and is not any more."""
    found = run.ranges[site.id]
    return found.low == float("inf") or found.high == float("-inf")
