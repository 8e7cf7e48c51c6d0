"""G220: a small term that the format rounds away beside what it is added to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from amptune.core.arguments import factor_of_second
from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import input_of
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import is_settled

DEAF = 0.1
"""Changes of a running average, as a share of the average itself, from which their loss is worth a word."""
_CLOSE = 1e-3


class LostTerm(GraphRule):
    """A running average in 16 bits whose steps are rounded away, or a jitter that is lost on its matrix.

    ## What it does
    Finds running averages of buffers and parameters (`m * a + (1 - m) * x`, `lerp_`, `a += (1 - m) * (x - a)`) that are
    kept in 16 bits, with a step too short for them; constants that a loop adds to a number beside which they are
    rounded away, as times; counts in buffers of 16 bits; and constants that are added to a matrix before a
    decomposition, inverse or solve and are under half an ulp of 1.

    ## Why is this bad
    A sum is rounded to the format's digits: BF16 keeps eight bits of them, so that a step of a thousandth changes
    nothing, and the average stays where it is, as a count does at 256 (2048 in FP16). In FP32 a jitter of 1e-8 is gone
    beside a diagonal of 1: the matrix is as singular as it was, and Cholesky raises.

    ## Example
    ```python
    self.usage = 0.999 * self.usage + 0.001 * counts.bfloat16()
    ```

    ## Use instead
    ```python
    self.usage = 0.999 * self.usage.float() + 0.001 * counts  # a buffer in FP32
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Mixed Precision Training (ICLR 2018), section on FP32 copies of weights; torch.finfo.
    """

    code = "G220"
    name = "lost-term"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("counts of codes in BF16", model_file(
            """
            with torch.no_grad():
                self.usage = 0.99 * self.usage + 0.01 * x.mean(0).to(self.usage.dtype)  # <- G220
            return self.fc(x) / self.usage.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('usage', torch.ones(64, dtype=torch.bfloat16))")),
        Example("a step towards what is new", model_file(
            """
            with torch.no_grad():
                self.mean += 0.001 * (x.mean(0).half() - self.mean)  # <- G220
            return self.fc(x) - self.mean
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('mean', torch.zeros(64, dtype=torch.float16))")),
        Example("the weights of a target network", model_file(
            """
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.fast.parameters()):
                    slow.data.mul_(0.996).add_(fast.data, alpha=1 - 0.996)  # <- G220
            return self.fast(x) - self.slow(x).detach()
            """, init="self.fast, self.slow = nn.Linear(64, 64), nn.Linear(64, 64).requires_grad_(False)",
            cast=".bfloat16()", batch="torch.randn(32, 64).bfloat16()")),
        Example("a time that stands still", model_file(
            """
            t = torch.ones((), dtype=torch.bfloat16, device=x.device)
            for _ in range(4):
                x = x + 0.002 * self.fc(x) * t.float()
                t = t + 0.002  # <- G220
            return x
            """)),
        Example("how often each item was seen", model_file(
            """
            self.seen.index_add_(0, x.argmax(1), torch.ones(32, dtype=torch.float16, device=x.device))  # <- G220
            return self.fc(x) / self.seen.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('seen', torch.ones(64, dtype=torch.float16))")),
        Example("steps so far", model_file(
            """
            self.steps += 1  # <- G220
            return self.fc(x) / self.steps.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('steps', torch.zeros((), dtype=torch.bfloat16))")),
        Example("steps so far, copied into their buffer", model_file(
            """
            with torch.no_grad():
                self.steps.copy_(self.steps + 1)  # <- G220
            return self.fc(x) / self.steps.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('steps', torch.zeros((), dtype=torch.float16))")),
        Example("counts of what is positive", model_file(
            """
            self.alive.add_((x > 0).sum(0).to(self.alive.dtype))  # <- G220
            return self.fc(x) * (self.alive > 0)
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('alive', torch.zeros(64, dtype=torch.bfloat16))")),
        Example("a jitter of 1e-9", model_file(
            """
            h = self.fc(x).float()
            with torch.autocast(x.device.type, enabled=False):
                k = torch.exp(-torch.cdist(h, h).square())
                chol = torch.linalg.cholesky(k + 1e-9 * torch.eye(32, device=x.device))  # <- G220
            return chol.diagonal().log()
            """)),
    )  # fmt: skip
    VALID = (
        Example("counts of codes in FP32", model_file(
            """
            with torch.no_grad():
                self.usage = 0.99 * self.usage + 0.01 * x.mean(0)
            return self.fc(x) / self.usage
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('usage', torch.ones(64))")),
        Example("steps so far in integers, and in FP32", model_file(
            """
            self.steps += 1
            self.seen.index_add_(0, x.argmax(1), torch.ones(32, device=x.device))
            return self.fc(x) / self.steps / self.seen
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('seen', torch.ones(64))\n"
                      "self.register_buffer('steps', torch.zeros((), dtype=torch.long))")),
        Example("a count with one added", model_file(
            "return self.fc(x) / (self.seen + 1).float()", init="self.fc = nn.Linear(64, 64)\n"
            "self.register_buffer('seen', torch.ones(64, dtype=torch.float16))")),
        Example("counts of one batch", model_file(
            """
            seen = torch.zeros(64, dtype=torch.float16, device=x.device)
            seen.index_add_(0, x.argmax(1), torch.ones(32, dtype=torch.float16, device=x.device))
            return self.fc(x) / (1 + seen.float())
            """)),
        Example("long steps", model_file(
            """
            with torch.no_grad():
                self.mean.lerp_(x.mean(0).bfloat16(), 0.1)
            return self.fc(x) - self.mean
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('mean', torch.zeros(64, dtype=torch.bfloat16))")),
        Example("a mixture within one step", model_file("return 0.999 * self.fc(x) + 0.001 * self.fc(x).tanh()")),
        Example("a time that goes on", model_file(
            """
            t = torch.zeros((), dtype=torch.bfloat16, device=x.device)
            for _ in range(4):
                x = x + 0.25 * self.fc(x) * t.float()
                t = t + 0.25
            return x
            """)),
        Example("a jitter that FP32 can hold", model_file(
            """
            h = self.fc(x).float()
            with torch.autocast(x.device.type, enabled=False):
                k = torch.exp(-torch.cdist(h, h).square())
                chol = torch.linalg.cholesky(k + 1e-5 * torch.eye(32, device=x.device))
            return chol.diagonal().log()
            """)),
        Example("a small jitter of a small matrix", model_file(
            """
            h = self.fc(x).float()
            with torch.autocast(x.device.type, enabled=False):
                k = 1e-3 * torch.exp(-torch.cdist(h, h).square())
                chol = torch.linalg.cholesky(k + 1e-9 * torch.eye(32, device=x.device))
            return chol.diagonal().log()
            """)),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each average, and for each jitter."""
        if not context.runs:
            return
        for site in context.graph:
            if context.train and (step := _step_of_average(context.runs[0], site)):
                yield from self._average(context, site, step)
            elif context.train and _is_tally(context.runs[0], site):
                yield from self._tally(context, site)
            elif op_named(site.op).family is Family.LINALG:
                yield from self._jitter(context, site)
        told: set[str] = set()
        for site in context.graph:
            if site.site_id not in told and (found := self._counter(context, site)):
                told.add(site.site_id)
                yield found

    def _average(self, context: GraphContext, site: Site, step: float) -> Iterable[Finding]:
        kept = [site, *(after for after in context.graph.consumers(site.id) if after.op == "copy")]
        for half in HALF:
            runs = tuple(run for run in context.runs if any(half in run.dtypes[each.id].outputs for each in kept))
            lost = Format.parse(half).epsilon / 2 / step
            if runs and lost >= DEAF:
                yield context.finding(
                    self,
                    site,
                    f"a running average in {Format.parse(half)} (under {recipes_in(runs)}) with a step of {step:.3g}: "
                    f"changes of less than about {lost:.2g} times its own size are rounded away; keep it in float32",
                    step=step,
                    format=str(Format.parse(half)),
                )

    def _tally(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        for half in HALF:
            runs = tuple(run for run in context.runs if half in run.dtypes[site.id].outputs)
            if runs:
                number_format = Format.parse(half)
                most = number_format.largest_exact_integer
                yield context.finding(
                    self,
                    site,
                    f"a count in {number_format} (under {recipes_in(runs)}), which has no {most + 1}: adding 1 to "
                    f"{most} changes nothing, so that it stops there; count in integers or in float32",
                    most=most,
                    format=str(number_format),
                )

    def _counter(self, context: GraphContext, site: Site) -> Finding | None:
        """A constant that a loop adds again and again to a number beside which it is nothing."""
        if site.op not in ("add", "sub"):
            return None
        for run in context.runs:
            for side in (0, 1) if site.op == "add" else (0,):
                before, by = run.ranges.root(site, side), _constant(run, site, 1 - side)
                if before is None or before is site or before.site_id != site.site_id or not by:
                    continue
                half_ulp = _half_ulp(run, site) / (2 if site.op == "sub" else 1)  # below a power of two it is half
                least = run.ranges.operand(site, side).least
                if not (0 < least < math.inf) or by >= half_ulp * 2.0 ** math.floor(math.log2(least)):
                    continue
                runs = tuple(each for each in context.runs if _format_of(each, site) == _format_of(run, site))
                return context.finding(
                    self,
                    site,
                    f"a loop adds {by:.3g} to a number in {_format_of(run, site)} (under {recipes_in(runs)}) that has "
                    f"come to {least:.3g}, beside which that is rounded away: it stays where it is; count in integers "
                    "and multiply, or add in float32",
                    step=by,
                    least=least,
                )
        return None

    def _jitter(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        for total, jitter, side in _jitters(context, site):
            lost = {run: jitter / half for run in context.runs if jitter < (half := _half_ulp(run, total))}
            runs = tuple(
                run for run in lost if (context.bounds(run) or run.ranges).operand(total, side).high > lost[run]
            )
            if runs:
                yield context.finding(
                    self,
                    total,
                    f"{jitter:.3g} is added to a matrix before {site.op}: in {_format_of(runs[0], total)} it is lost "
                    f"beside numbers over {lost[runs[0]]:.2g}{_under(context, runs)}, so that it makes nothing "
                    "positive definite that was not; add more, relative to the diagonal, or run this in float64",
                    jitter=jitter,
                    limit=lost[runs[0]],
                )


def _constant(run: Run, site: Site, side: int) -> float:
    """The size of an operand that is a literal or a constant; 0 for anything else."""
    made = run.ranges.root(site, side)
    is_literal = side in (site.attrs.get("scalars") or {})
    is_stored = input_of(site, side) in (site.attrs.get("bounds") or {})
    found = run.ranges.operand(site, side)
    known = is_literal or is_stored or (made is not None and run.ranges.is_constant(made))
    factor = abs(factor_of_second(site)) if side == 1 else 1.0
    return found.magnitude * factor if known and math.isfinite(found.magnitude) else 0.0


def _under(context: GraphContext, runs: tuple[Run, ...]) -> str:
    return "" if len(runs) == len(context.runs) else f" (under {recipes_in(runs)})"


def _format_of(run: Run, site: Site) -> str:
    return next(iter(run.dtypes[site.id].outputs), "")


def _half_ulp(run: Run, site: Site) -> float:
    """Half of what the numbers next to 1 are apart in the format of a result; 0 for formats that are not ours."""
    dtype = _format_of(run, site)
    return Format.parse(dtype).epsilon / 2 if dtype in ("float32", *HALF) else 0.0


def _jitters(context: GraphContext, site: Site) -> Iterator[tuple[Site, float, int]]:
    """Sums that a site of linear algebra reads, the largest number of the constant matrix in them, and the side of the
    other term."""
    ranges = context.runs[0].ranges
    for index in range(len(site.inputs)):
        total = ranges.root(site, index)
        if total is None or total.op != "add" or is_settled(context, total) or total.attrs.get("scalars"):
            continue
        for side in (0, 1):
            found, made = ranges.operand(total, side), ranges.root(total, side)
            stands = made is None or is_settled(context, made)
            factor = abs(factor_of_second(total)) if side == 1 else 1.0
            if stands and found.is_known and found.low == 0 and 0 < found.high < math.inf:
                yield total, found.high * factor, 1 - side


_COUNTED = ("bool", "uint8", "int16", "int32", "int64")
_TALLIES = {"add": 1, "index_add": 2, "scatter_add": 2}
"""Ops that add to a tensor in place -> which operand they add."""


def _is_tally(run: Run, site: Site) -> bool:
    """Whether numbers of things are added to a stored tensor: ones, or what was counted or compared."""
    if site.op not in _TALLIES or not _is_stored(run, site, 0) or not _is_kept(run, site):
        return False
    side = _TALLIES[site.op]
    position = input_of(site, side)
    return _constant(run, site, side) == 1 or (position is not None and _counts(run, site, position))


def _is_kept(run: Run, site: Site) -> bool:
    """Whether a sum is written where its first term is stored."""
    after = (run.ranges.graph[name] for name in run.ranges.graph.graph.successors(site.id) if name in run.ranges.graph)
    return bool(site.attrs.get("in_place")) or any(
        each.op == "copy" and run.ranges.sources(each)[:1] == run.ranges.sources(site)[:1] for each in after
    )


def _counts(run: Run, site: Site, position: int) -> bool:
    """Whether an input was made of integers or truth values."""
    source = run.ranges.sources(site)[position]
    if source not in run.ranges.graph:
        return False
    made = run.ranges.graph[source]
    return all(output.dtype in _COUNTED for output in made.outputs)


def _step_of_average(run: Run, site: Site) -> float:
    """The weight of what is new in a running average of a stored tensor; 0 for anything else."""
    if site.op == "lerp":
        weight = (site.attrs.get("scalars") or {}).get(2)
        return _step(weight) if _is_stored(run, site, 0) else 0.0
    if site.op not in ("add", "sub"):
        return 0.0
    return next((step for side in (0, 1) if (step := _of_terms(run, site, side))), 0.0)


def _of_terms(run: Run, site: Site, side: int) -> float:
    """The weight of the other term, where the one at ``side`` is the stored tensor or most of it."""
    if site.op == "sub" and side == 1:
        return 0.0
    new = _weight(run, site, 1 - side)
    if _is_stored(run, site, side):
        return _step(new) if _is_difference(run, site, 1 - side) else 0.0
    kept = run.ranges.root(site, side)
    if site.op == "sub" or kept is None or kept.op != "mul" or len(kept.attrs.get("scalars") or {}) != 1:
        return 0.0
    ((place, share),) = kept.attrs["scalars"].items()
    is_average = _is_stored(run, kept, 1 - place) and abs(1 - float(share) - new) < _CLOSE * new
    return _step(new) if is_average else 0.0


def _step(weight: object) -> float:
    return float(weight) if isinstance(weight, int | float) and 0 < weight < 1 else 0.0


def _weight(run: Run, site: Site, side: int) -> float:
    """The number that a term is multiplied by: as alpha, or before."""
    factor = factor_of_second(site) if side == 1 else 1.0
    made = run.ranges.root(site, side)
    numbers = (made.attrs.get("scalars") or {}) if made is not None and made.op in ("mul", "div") else {}
    if made is None or len(numbers) != 1:
        return factor
    ((place, value),) = numbers.items()
    if made.op == "mul":
        return factor * float(value)
    return factor / float(value) if place == 1 and value else factor


def _is_difference(run: Run, site: Site, side: int) -> bool:
    """Whether a term is a difference from a stored tensor, multiplied or not."""
    made = run.ranges.root(site, side)
    if made is not None and made.op in ("mul", "div"):
        numbers = made.attrs.get("scalars") or {}
        made = run.ranges.root(made, 1 - next(iter(numbers), 1))
    kept = 1 if site.op == "add" else 0
    return made is not None and made.op == "sub" and _is_stored(run, made, kept)


def _is_stored(run: Run, site: Site, index: int) -> bool:
    """Whether an operand is a parameter or a buffer."""
    if index in (site.attrs.get("operand_params") or {}):
        return True
    position = input_of(site, index)
    source = run.ranges.sources(site)[position] if position is not None else ""
    return bool(source) and source != INPUT and source not in run.ranges.graph
