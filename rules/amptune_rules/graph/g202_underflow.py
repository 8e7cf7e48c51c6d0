"""G202: a result that FP16 flushes to zero, and that is divided by, logged or multiplied afterwards."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import chain, delivering, is_settled

SHARE = 0.05
"""The share of what vanishes from which it is worth a word."""
LOSS_SCALE = 65536.0
FLUSHED = Format.FP16.smallest_subnormal / 2
"""What is not larger than half of the smallest number rounds to zero."""


class Underflow(GraphRule):
    """A result that rounds to zero in FP16 and is then divided by, logged or multiplied.

    ## What it does
    Reports results in FP16 whose bound lies under 3e-8, and products with a literal that take all numbers under 1
    there, when a division, logarithm, root or product comes behind them. A small term that is only added is left
    alone. With `--calibrate` it also reports what was seen to vanish in a large part.

    ## Why is this bad
    The smallest number of FP16 is 6e-8. What is below half of it is zero, and so are the quotient, logarithm or product
    that follow: infinite, minus infinity, or nothing at all. A loss scale repairs gradients, not the forward.

    ## Example
    ```python
    weights = torch.sigmoid(scores) * 1e-8
    return values / weights.sum(-1, keepdim=True)
    ```

    ## Use instead
    ```python
    weights = torch.sigmoid(scores.float()) * 1e-8
    return values / (weights.sum(-1, keepdim=True) + 1e-12)
    ```

    ## Fix safety
    No automatic fix. `amptune tune` pins such an op in FP32.

    ## References
    Mixed Precision Training (ICLR 2018); torch.finfo.
    """

    code = "G202"
    name = "underflow"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a weight that vanishes before a division", model_file(
            """
            w = torch.sigmoid(self.fc(x)) * 1e-8  # <- G202
            return x / (w.sum(-1, keepdim=True) + 1e-12)
            """)),
        Example("a small factor before a product", model_file(
            """
            h = self.fc(x) * 1e-9  # <- G202
            return h * 1e9
            """)),
    )  # fmt: skip
    VALID = (
        Example("a small term that is added", model_file("return x + torch.sigmoid(self.fc(x)) * 1e-8")),
        Example("cast up first", model_file(
            """
            w = torch.sigmoid(self.fc(x).float()) * 1e-8
            return x / (w.sum(-1, keepdim=True) + 1e-12)
            """)),
        Example("a factor that fp16 can hold", model_file(
            """
            w = torch.sigmoid(self.fc(x)) * 1e-3
            return x / (w.sum(-1, keepdim=True) + 1e-3)
            """)),
        Example("the same in bf16", model_file(
            """
            h = self.fc(x) * 1e-9
            return h * 1e9
            """), options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each result."""
        plain, scaled, count = _gradients(context)
        if plain >= SHARE:
            yield context.finding(
                self,
                None,
                f"without a loss scale {plain:.0%} of the gradients at {count} results in fp16 are zero, with 65536 "
                f"{scaled:.1%} (a step on the batch); train with torch.amp.GradScaler",
                severity=Severity.INFO,
                share=round(plain, 4),
                share_scaled=round(scaled, 4),
            )
        for site in context.graph:
            runs = delivering(context, site, Format.FP16)
            if not runs or is_settled(context, site):
                continue
            limit = _vanishes_under(runs, site)
            use = _use(context, site)
            seen = _seen_share(context, site)
            if limit is None and use and seen >= SHARE:
                yield context.finding(
                    self,
                    site,
                    f"{seen:.0%} of the values of this {site.op} rounded to zero in fp16 in a step on the batch (under "
                    f"{recipes_in(runs)}), and a {use} comes after it; compute it in float32",
                    share=round(seen, 4),
                    format="fp16",
                    chain=chain(context, site),
                )
            elif limit is not None and use:
                share = "all of it" if limit == float("inf") else f"every |x| under {limit:.2g}"
                yield context.finding(
                    self,
                    site,
                    f"the result of this {site.op} rounds to zero in fp16 (under {recipes_in(runs)}), {share}, and a "
                    f"{use} comes after it; compute it in float32",
                    limit=limit,
                    format="fp16",
                    chain=chain(context, site),
                )


def _seen_share(context: GraphContext, site: Site) -> float:
    """The share of the values other than zero that a recorded step showed to be under FP16's smallest number."""
    observed = context.evidence.observed
    seen = observed.forward.get(site.id) if observed else None
    return seen.underflow(Format.FP16) if seen else 0.0


def _gradients(context: GraphContext) -> tuple[float, float, int]:
    """The share of gradients that vanish in FP16 without a loss scale and with 65536, and of how many sites."""
    observed = context.evidence.observed
    plain, with_scale, count = 0.0, 0.0, 0
    for site in context.graph if observed else ():
        seen = observed.gradient.get(site.id) if observed else None
        if seen is not None and seen.exponents and delivering(context, site, Format.FP16):
            plain += seen.underflow(Format.FP16)
            with_scale += seen.underflow(Format.FP16, LOSS_SCALE)
            count += 1
    return (plain / count, with_scale / count, count) if count else (0.0, 0.0, 0)


def _vanishes_under(runs: tuple[Run, ...], site: Site) -> float | None:
    """Under which |x| the result of x times a literal is zero, where that is 1 or more; infinite where it always is."""
    exact = [run.ranges.exact(site) for run in runs]
    if all(0 < found.magnitude <= FLUSHED for found in exact):
        return float("inf")
    scalars = site.attrs.get("scalars") or {}
    place = next(iter(scalars), None)
    if site.op not in ("mul", "div") or place is None or not scalars[place] or (site.op == "div" and place == 0):
        return None
    factor = abs(float(scalars[place])) if site.op == "mul" else 1 / abs(float(scalars[place]))
    limit = FLUSHED / factor
    return limit if limit >= 1 else None


_HARMED = {
    **dict.fromkeys(("div", "reciprocal"), "division"), **dict.fromkeys(("log", "log2", "log10", "log1p"), "logarithm"),
    **dict.fromkeys(("sqrt", "rsqrt"), "root"), **dict.fromkeys(("mul", "pow", "square", "prod"), "product"),
}  # fmt: skip
_CARRIES = frozenset({"sum", "mean", "neg", "abs", "clamp", "amax", "max", "relu", "cumsum", "matmul", "bmm", "mm"})
_STEPS = 4


def _use(context: GraphContext, site: Site) -> str:
    """What the vanished result is used for; empty where it is only added to something that is not raised after it."""
    fresh = [site]
    for _ in range(_STEPS):
        after = [consumer for each in fresh for consumer in context.graph.consumers(each.id)]
        for consumer in after:
            if consumer.op in _HARMED:
                return _HARMED[consumer.op]
        fresh = [each for each in after if each.op in _CARRIES or (each.op == "add" and each.attrs.get("scalars"))]
    return "factor that raises what it is added to" if _is_raised(context, site) else ""


def _is_raised(context: GraphContext, site: Site) -> bool:
    """Whether literals multiply what the vanished result is a term of by so much that its loss shows."""
    fresh = {site.id: FLUSHED}
    for _ in range(_STEPS):
        after = {
            consumer.id: lost * _factor(consumer)
            for name, lost in fresh.items()
            for consumer in context.graph.consumers(name)
            if consumer.op in _CARRIES or consumer.op in ("add", "sub", "mul", "div")
        }
        if any(lost >= SHARE for lost in after.values()):
            return True
        fresh = after
    return False


def _factor(site: Site) -> float:
    """What a site multiplies its operand by, where that is a literal; 1 for anything else that is linear."""
    numbers = site.attrs.get("scalars") or {}
    number = numbers.get(1, numbers.get(0)) if site.op == "mul" else numbers.get(1)
    if site.op not in ("mul", "div"):
        return 1.0
    size = abs(float(number or 0))
    return size if site.op == "mul" or not size else 1 / size
