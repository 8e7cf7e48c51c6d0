"""G216: a residual stream in FP16 that only grows."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import delivering

LONG = 16
"""Additions in a row from which a stream is worth a word: eight blocks of attention and feed-forward."""
LIMIT: float = Format.FP16.max
NEAR = Format.FP16.max / 16
"""A stream that comes this near to the limit with initial weights passes it during training (T5's grows by more)."""
_STACK = """
for layer in self.layers:
    x = x + layer(x)
return x
"""


class ResidualGrowth(GraphRule):
    """A long chain of additions in FP16 without a norm, scale or clamp on the stream itself.

    ## What it does
    Follows residual streams, `x = x + f(x)`, of 16 additions and more whose sums are stored in FP16. It is
    information, and a warning where a step on the batch (`--calibrate`) showed values within a factor of 16 of 65504.
    Norms inside of the branches do not bound the stream; a norm, a factor or a clamp on it does.

    ## Why is this bad
    Each branch adds to the stream, and nothing takes away: T5 was trained in BF16 and passes 65504 in its last layers,
    which gives infinity and NaN in FP16. Under autocast a stream that starts from an FP32 embedding stays FP32.

    ## Example
    ```python
    x = x + self.feed_forward(self.norm(x))     # in a model cast by .half()
    ```

    ## Use instead
    ```python
    x = x.float() + self.feed_forward(self.norm(x))     # or train in BF16
    ```

    ## Fix safety
    No automatic fix. `amptune tune` pins such an op in FP32.

    ## References
    transformers issues 9295, 5651 and 19229.
    """

    code = "G216"
    name = "residual-growth"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("sixteen blocks in a half model", model_file(
            _STACK.replace("layer(x)", "layer(x)  # <- G216"),
            init="self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(16))", cast=".half()",
            batch="torch.randn(32, 64).half()")),
    )  # fmt: skip
    VALID = (
        Example("a norm on the stream", model_file(
            _STACK.replace("x + layer(x)", "F.layer_norm(x + layer(x), (64,))"),
            init="self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(16))", cast=".half()",
            batch="torch.randn(32, 64).half()")),
        Example("a stream that stays FP32 under autocast", model_file(
            _STACK, init="self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(16))")),
        Example("branches that are bounded", model_file(
            _STACK.replace("layer(x)", "torch.tanh(layer(x))"),
            init="self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(16))", cast=".half()",
            batch="torch.randn(32, 64).half()")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each stream, at its last addition."""
        lengths: dict[str, int] = {}
        for site in context.graph:
            runs = delivering(context, site, Format.FP16)
            if site.op == "add" and runs and not _is_bounded(runs[0], site):
                before = [runs[0].ranges.root(site, place) for place in (0, 1)]
                lengths[site.id] = _additions(site) + max(
                    (lengths.get(each.id, 0) for each in before if each), default=0
                )
        ends = [name for name, length in lengths.items() if length >= LONG and not _goes_on(context, name, lengths)]
        for name in ends:
            yield from self._stream(context, context.graph[name], lengths[name])

    def _stream(self, context: GraphContext, site: Site, length: int) -> Iterable[Finding]:
        observed = context.evidence.observed
        seen = observed.forward.get(site.id) if observed else None
        runs = delivering(context, site, Format.FP16)
        near = seen is not None and seen.magnitude >= NEAR
        if seen is not None and not near:
            return
        shown = f"; a step on the batch showed {seen.magnitude:.4g} already" if seen else ""
        yield context.finding(
            self,
            site,
            f"a residual stream of {length} additions is stored in fp16 under {recipes_in(runs)}, and nothing "
            f"bounds it: it may pass 65504 during training{shown}; keep the stream in float32 or use BF16",
            severity=None if near else Severity.INFO,
            length=length,
            format="fp16",
        )


def _is_bounded(run: Run, site: Site) -> bool:
    """Whether the sum fits, or what each addition adds is so small that a long stream fits as well."""
    smaller = min(run.ranges.operand(site, place).magnitude for place in (0, 1))
    fits = run.ranges.exact(site).magnitude <= LIMIT
    return fits or smaller * site.calls * LONG <= LIMIT


def _additions(site: Site) -> int:
    """How many additions to the stream a site is: all its calls, where each goes on from the one before."""
    feeds_itself = any(site.id in sources for sources in site.attrs.get("later_sources", ()))
    return site.calls if feeds_itself else 1


def _goes_on(context: GraphContext, name: str, lengths: dict[str, int]) -> bool:
    """Whether a later addition continues the stream."""
    return any(lengths.get(after.id, 0) > lengths[name] for after in context.graph.consumers(name))
