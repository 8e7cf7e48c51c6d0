"""G214: a square in FP16 of what may pass 255."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.arguments import exponent_of
from amptune.core.bounds.intervals import ANY
from amptune.core.bounds.relations.products import is_self_dot
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import BATCH_MARGIN, is_settled, of_batch, reads_weights_alone, runs_in, where_in

LIMIT = Format.FP16.max**0.5
SMALL = 8.0
"""Up to here numbers are common in activations: a product of a tensor with itself that they overflow is a warning."""


class SquareOverflow(GraphRule):
    """x * x, square or an even power of it in FP16, where nothing bounds x by 255.9.

    ## What it does
    Reports squares that run in FP16. Under CUDA autocast pow runs in FP32, but `x * x` and square do not. The output
    of a norm layer is taken as small. So are products of a matrix with itself (Gram matrices), which sum many squares.

    ## Why is this bad
    256 squared is 65536, which is infinite in FP16. Hand-written RMS norms and squared ReLUs meet such activations.

    ## Example
    ```python
    y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
    ```

    ## Use instead
    ```python
    y = torch.nn.functional.rms_norm(x, x.shape[-1:])
    ```

    ## Fix safety
    No automatic fix. `amptune tune` pins such an op in FP32.

    ## References
    Mixed Precision Training (ICLR 2018).
    """

    code = "G214"
    name = "square-overflow"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a hand-written RMS norm", model_file(
            """
            h = self.fc(x)
            return h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-5)  # <- G214
            """)),
        Example("a Gram matrix", model_file(
            "h = torch.relu(self.fc(x)).t()\nreturn torch.mm(h, h.t()) / 4096  # <- G214",
            batch="torch.randn(4096, 64)")),
    )  # fmt: skip
    VALID = (
        Example("a Gram matrix of what was divided before", model_file(
            "h = torch.relu(self.fc(x)).t() / 64\nreturn torch.mm(h, h.t())", batch="torch.randn(4096, 64)")),
        Example("a Gram matrix of unit vectors", model_file(
            "h = F.normalize(self.fc(x), dim=-1)\nreturn h @ h.t()", batch="torch.randn(4096, 64)")),
        Example("scores of queries and keys that one layer gives", model_file(
            "q, k = self.fc(x).chunk(2, -1)\nreturn q @ k.t()",
            init="self.fc = nn.Linear(64, 128)", batch="torch.randn(64, 64)")),
        Example("pow, which autocast runs in FP32", model_file(
            """
            h = self.fc(x)
            return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)
            """)),
        Example("cast up first", model_file(
            """
            h = self.fc(x).float()
            return h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-5)
            """)),
        Example("a square of weights alone", model_file(
            """
            spread = self.root @ self.root.T
            return self.fc(x) / (1 + (spread * spread).float().sum(0))
            """,
            init="self.fc = nn.Linear(64, 64)\nself.root = nn.Parameter(torch.randn(64, 8) * 0.05)")),
        Example("a square of numbers of the batch", model_file(
            "return self.fc(x * x)", cast=".half()", batch="torch.randn(32, 64).half()"), options={"evidence": True}),
        Example("a bounded square", model_file(
            """
            h = torch.sigmoid(self.fc(x))
            return h * h
            """)),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each square."""
        yield from self._grams(context)
        for site, half in context.sites_in_half("mul", "square", "pow", "einsum"):
            if not _is_square(half[0], site):
                continue
            if is_settled(context, site):
                yield from self._constant(context, site, runs_in(half, site, Format.FP16))
            if reads_weights_alone(context, site):
                continue
            place, count = _tensors(site)[0], _summed(site)
            limit = math.sqrt(Format.FP16.max / count)
            runs = tuple(
                run for run in runs_in(half, site, Format.FP16) if run.ranges.operand(site, place).magnitude > limit
            )
            of_data = of_batch(context, site, place).magnitude
            if not runs or of_data * BATCH_MARGIN <= limit:
                continue
            if not (is_normalised := _is_normalised(runs[0], site, place)) or limit < 1:
                found = runs[0].ranges.operand(site, place)
                known = "a norm makes them 1 on average" if is_normalised else "nothing in the graph bounds them"
                if math.isfinite(found.magnitude) and not is_normalised:
                    known = f"these lie in {found}"
                yield context.finding(
                    self,
                    site,
                    f"{_told(count, limit, where_in(runs, site))} give infinity, and "
                    f"{known if of_data > limit else f'this batch may give {of_data:.3g}'}; compute it in float32",
                    severity=None if of_data > limit else Severity.INFO,
                    limit=round(limit, 1 if count == 1 else 4),
                    format="fp16",
                )

    def _constant(self, context: GraphContext, site: Site, runs: tuple[Run, ...]) -> Iterable[Finding]:
        """Squares of numbers that are the same in every step, as those of an arange."""
        numbers = runs[0].ranges.operand(site, 0) if runs and site.op in ("mul", "square") else ANY
        if LIMIT < numbers.magnitude < math.inf:
            yield context.finding(
                self,
                site,
                f"a square of {numbers} runs in {where_in(runs, site)} and reaches "
                f"{numbers.magnitude**2:.4g} in every step, which is infinite there; compute it in float32",
                limit=round(LIMIT, 1),
                format="fp16",
            )

    def _grams(self, context: GraphContext) -> Iterable[Finding]:
        """Products of a tensor with itself, transposed: their diagonal sums the squares of the reduction."""
        for site, half in context.sites_in_half("matmul", "bmm", "mm", "einsum"):
            runs = tuple(run for run in runs_in(half, site, Format.FP16) if _is_gram(run, site))
            if not runs or reads_weights_alone(context, site):
                continue
            length = site.gemms[0].k
            scaled = math.sqrt(Format.FP16.max / length)
            limit = scaled / _factor(runs[0], site)
            place = _tensors(site)[0]
            of_data = BATCH_MARGIN * of_batch(context, site, place).magnitude
            largest = min(runs[0].ranges.operand(site, place).magnitude, of_data)
            if largest > scaled and limit < LIMIT - 1 and not _is_normalised(runs[0], site, place):
                yield context.finding(
                    self,
                    site,
                    f"a product of a tensor with itself sums {length} squares in {where_in(runs, site)}: numbers of "
                    f"size {limit:.2g} give 65504, and nothing in the graph bounds them; divide before the product, "
                    "not after it, or compute it in float32",
                    severity=Severity.WARNING if limit <= SMALL else Severity.INFO,
                    limit=round(limit, 4),
                    format="fp16",
                )


def _summed(site: Site) -> int:
    """How many squares each number of the result sums."""
    return max((gemm.k for gemm in site.gemms), default=1) if site.op == "einsum" else 1


def _told(count: int, limit: float, where: str) -> str:
    if count == 1:
        return f"a square runs in {where}: inputs over {limit:.1f}"
    return f"{count} squares are summed in {where}: inputs of size {limit:.3g}"


def _is_gram(run: Run, site: Site) -> bool:
    """Whether both operands are one tensor, and each row is multiplied with all."""
    if len(site.gemms) != 1 or not site.gemms[0].m == site.gemms[0].n > 1 or len(places := _tensors(site)) != 2:
        return False
    return all(run.ranges.covers(site, first, site, second) for first, second in (places, places[::-1]))


def _tensors(site: Site) -> list[int]:
    """The operands that are tensors, rather than an equation."""
    return [place for place, index in enumerate(site.attrs.get("operands") or ()) if index is not None]


def _factor(run: Run, site: Site) -> float:
    """What the operands were multiplied with before."""
    root = run.ranges.root(site, _tensors(site)[0])
    scalars = (root.attrs.get("scalars") or {}) if root is not None else {}
    if root is None or len(scalars) != 1 or root.op not in ("mul", "div"):
        return 1.0
    ((place, value),) = scalars.items()
    if root.op == "div":
        return abs(1 / float(value)) if place == 1 and value else 1.0
    return abs(float(value)) or 1.0


def _is_square(run: Run, site: Site) -> bool:
    if site.op == "einsum":
        return is_self_dot(run.ranges, site)
    if site.op == "mul":
        return run.ranges.same(site, 0, site, 1)
    exponent = exponent_of(site)
    return site.op == "square" or (exponent is not None and exponent >= 2 and exponent % 2 == 0)


def _is_normalised(run: Run, site: Site, place: int = 0) -> bool:
    root = run.ranges.root(site, place)
    return root is not None and op_named(root.op).family is Family.NORM
