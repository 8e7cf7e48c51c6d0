"""G207: a long sum whose result is stored in 16 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from amptune.core.bounds.ranges import Ranges
from amptune.core.bounds.relations.entropy import SHARES
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import axis_length, runs_in, where_in


class LongReduction(GraphRule):
    """A sum over so many elements that its result leaves FP16.

    ## What it does
    Reports sums that run in FP16 over more elements than 65504 divided by the largest magnitude that the graph allows
    (1 where nothing bounds the elements). Under CUDA autocast sum runs in FP32 and is not reported; matmul, bmm and
    einsum run in FP16, and are reported where neither factor has negative numbers, so that nothing cancels. That is
    information where nothing bounds the factors.

    ## Why is this bad
    The kernel accumulates in FP32, but the result is stored in FP16: a sum of 1e5 ones is infinite.

    ## Example
    ```python
    total = (probabilities.half() > 0).half().sum()
    ```

    ## Use instead
    ```python
    total = probabilities.sum(dtype=torch.float32)
    ```
    A product of elements is summed in float32 as (a * b).sum(...); a normaliser takes the mean, not the sum, of keys.

    ## Fix safety
    No automatic fix.

    ## References
    torch.sum; PyTorch notes on numerical accuracy.
    """

    code = "G207"
    name = "long-reduction"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a sum over 128 thousand elements in a half model", model_file(
            "return self.fc(x).sum()  # <- G207", cast=".half()", batch="torch.randn(2048, 64).half()")),
        Example("an overlap over a volume, as an einsum", model_file(
            """
            share = torch.softmax(self.fc(x), -1)
            return torch.einsum("bnc,bnc->bc", share, (x > 0).to(share.dtype))  # <- G207
            """, batch="torch.randn(2, 70000, 64)")),
        Example("the normaliser of linear attention", model_file(
            """
            q, k = F.elu(self.fc(x)) + 1, F.elu(self.fc(x)) + 1
            return x / torch.einsum("bnd,bd->bn", q, k.sum(1))[..., None]  # <- G207
            """, batch="torch.randn(2, 4096, 64)")),
    )  # fmt: skip
    VALID = (
        Example("an average of values by attention", model_file(
            """
            share = torch.softmax(self.fc(x) @ x.transpose(1, 2), -1)
            return share @ torch.sigmoid(x)
            """, batch="torch.randn(1, 70000, 64)")),
        Example("the normaliser by the mean of the keys", model_file(
            """
            q, k = F.elu(self.fc(x)) + 1, F.elu(self.fc(x)) + 1
            return x / torch.einsum("bnd,bd->bn", q, k.mean(1))[..., None]
            """, batch="torch.randn(2, 4096, 64)")),
        Example("the same under autocast, where sum is FP32", model_file("return self.fc(x).sum()",
                                                                          batch="torch.randn(2048, 64)")),
        Example("a mean", model_file("return self.fc(x).mean()", cast=".half()", batch="torch.randn(2048, 64).half()")),
        Example("dtype named", model_file("return self.fc(x).sum(dtype=torch.float32)", cast=".half()",
                                          batch="torch.randn(2048, 64).half()")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each sum."""
        yield from self._sums(context)
        yield from self._products(context)

    def _products(self, context: GraphContext) -> Iterable[Finding]:
        """Products of what is not negative: their terms add up."""
        for site, half in context.sites_in_half(*_PRODUCTS):
            runs = runs_in(half, site, Format.FP16)
            count = max((gemm.k for gemm in site.gemms), default=0)
            places = [place for place, index in enumerate(site.attrs.get("operands") or ()) if index is not None]
            if not runs or site.params or len(places) != 2 or not count:
                continue
            ranges = runs[0].ranges
            raised = math.prod(_literal(ranges, site, place) for place in places)
            if raised > 1 and count * raised > Format.FP16.max:
                yield self._raised(context, site, runs, count, raised)
                continue
            own = ranges.covers(site, places[0], site, places[1])  # G214 says so of squares
            if count > Format.FP16.max and not own and all(_is_normalised(ranges, site, place) for place in places):
                yield self._normalised(context, site, runs, count)
                continue
            if any(ranges.operand(site, place).low < 0 for place in places) or _averages(ranges, site, places):
                continue
            (first, is_known), (second, other_is_known) = (_size(ranges, site, place) for place in places)
            if count * first * second <= Format.FP16.max:
                continue
            known, longest = is_known and other_is_known, max(first, second)
            terms = f"{count} terms, sums of {longest:g} each" if not known and longest > 1 else f"{count} terms"
            yield context.finding(
                self,
                site,
                f"{site.op} adds up {terms} in {where_in(runs, site)}, none of them negative: with elements of "
                f"{first * second if known else 1:g} it passes 65504; sum in float32, or divide a factor by its length "
                "first",
                severity=None if known else Severity.INFO,
                count=count,
                format="fp16",
            )

    def _raised(self, context: GraphContext, site: Site, runs: tuple[Run, ...], count: int, raised: float) -> Finding:
        """Factors that literals make larger before they are multiplied."""
        return context.finding(
            self,
            site,
            f"{site.op} adds up {count} terms in {where_in(runs, site)}, and literals make its factors {raised:g} times"
            " larger before: with elements of 1 and one sign it passes 65504; multiply the result instead, or divide a "
            "factor by its length first",
            severity=Severity.INFO,
            count=count,
            format="fp16",
        )

    def _normalised(self, context: GraphContext, site: Site, runs: tuple[Run, ...], count: int) -> Finding:
        """Correlations: what a norm has made 1 on average adds up to the number of terms where both agree."""
        return context.finding(
            self,
            site,
            f"{site.op} adds up {count} products of normalised numbers in {where_in(runs, site)}: where both agree "
            f"that is {count}, over 65504; divide a factor by the count before the product, or compute it in float32",
            count=count,
            format="fp16",
        )

    def _sums(self, context: GraphContext) -> Iterable[Finding]:
        for site, half in context.sites_in_half("sum"):
            runs = runs_in(half, site, Format.FP16)
            if not runs:
                continue
            magnitude = min(run.ranges.operand(site, 0).magnitude for run in runs)
            count = axis_length(site)
            largest = magnitude if magnitude < Format.FP16.max else 1.0
            if count * largest > Format.FP16.max:
                yield context.finding(
                    self,
                    site,
                    f"sum of {count} elements in {where_in(runs, site)}: with elements of {largest:g} it passes 65504; "
                    "use dtype=torch.float32",
                    count=count,
                    format="fp16",
                )


_PRODUCTS = ("matmul", "mm", "bmm", "mv", "dot", "einsum")


def _is_normalised(ranges: Ranges, site: Site, place: int) -> bool:
    made = ranges.root(site, place)
    return made is not None and op_named(made.op).family is Family.NORM


def _literal(ranges: Ranges, site: Site, place: int) -> float:
    """How much larger a literal makes a factor of which nothing else is known: 16 for ``16 * x`` and ``x / 0.0625``."""
    made = ranges.root(site, place)
    scalars = (made.attrs.get("scalars") or {}) if made is not None else {}
    if made is None or len(scalars) != 1 or math.isfinite(ranges.operand(site, place).magnitude):
        return 1.0
    ((at, number),) = scalars.items()
    if made.op == "mul":
        return max(abs(float(number)), 1.0)
    return max(1 / abs(float(number)), 1.0) if made.op == "div" and at == 1 and number else 1.0


def _size(ranges: Ranges, site: Site, place: int) -> tuple[float, bool]:
    """How large a factor is, and whether that is known: 1, or what adds up in a sum, where nothing bounds it or a bound
    over 1 does, as that of 1 / (x + eps), which is far off what comes."""
    size, made = ranges.operand(site, place).magnitude, ranges.root(site, place)
    if size <= 1:
        return size, True
    return float(axis_length(made)) if made is not None and made.op == "sum" else 1.0, False


def _averages(ranges: Ranges, site: Site, places: Sequence[int]) -> bool:
    """Whether a factor is shares that add up to 1 along the axis that the product sums over, as far as views tell."""
    for number, place in enumerate(places):
        made = ranges.root(site, place)
        if made is None or made.op not in SHARES:
            continue
        letters = str(site.attrs.get("equation", "")).replace(" ", "").partition("->")
        dim, rank = made.attrs.get("dim"), len(made.outputs[0].shape)
        own = letters[0].split(",")[number] if letters[0].count(",") == 1 else ""
        if (
            (site.attrs.get("views") or {}).get(site.attrs["operands"][place])
            or len(own) != rank
            or not isinstance(dim, int)
        ):
            return True
        if own[dim] not in letters[2]:
            return True
    return False
