"""G201: a number or a bound that FP16 cannot hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in, stopped
from amptune.core.intervals import ANY, Range
from amptune.core.observed import Stat
from amptune.core.operands import input_of
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import called, chain, delivering, is_settled, of_batch
from amptune_rules.graph._overflows import (
    FACTORS,
    LIMIT,
    factor_limit,
    infinite_factor,
    is_outside,
    is_saturated,
    lies_outside,
    literals,
    lost_in_cast,
    may_be_outside,
    number_outside,
    only_grows,
    reached,
    seen_outside,
)

_FILLS = ("masked_fill", "index_put", "full_like", "clamp")
_ARITHMETIC = ("add", "sub", "where")
_GROWING = ("lgamma", "exp", "exp2", "expm1", "cosh", "sinh")
_EVEN, _SURE = 0.5, 4
"""What numbers that are spread evenly are of the largest on average, and how far over the end their sum has to be."""
_JUDGED = (*_FILLS, *_ARITHMETIC, *FACTORS)


class RangeOverflow(GraphRule):
    """A number over 65504 in an op that runs in FP16, or a result that certainly is over it.

    ## What it does
    Looks at the numbers that the code gives to ops which run in FP16 (literals, constants, buffers), at factors that
    take numbers under 1 out of it, and at results whose lower bound (upper bound for negative ones) already lies
    outside FP16 whatever the inputs are, and at masks made with a large number in FP32 and cast to FP16. Numbers of the
    batch over 65504 that are cast to FP16 are reported, and, as information, products of two tensors that ops and
    literals bound, where the bounds meet over 65504. With `--calibrate` it reports what a step on the batch showed,
    with `--range` where the bounds first leave FP16.

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
    by_calls = True
    tells_stops = True
    INVALID = (
        Example("a mask of -1e9 under fp16 autocast", model_file(
            """
            scores = self.fc(x) @ x.T
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, -1e9).softmax(-1)  # <- G201
            """)),
        Example("a large number added in fp16", model_file("return self.fc(x) + 1e6  # <- G201")),
        Example("a factor that overflows", model_file("return torch.tanh(self.fc(x) * 1e6)  # <- G201")),
        Example("a large constant in where", model_file(
            """
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            masked = torch.tensor(-1e9, device=x.device)
            return torch.where(mask, masked, self.fc(x) @ x.T).softmax(-1)  # <- G201
            """)),
        Example("areas of boxes in pixels", model_file(
            """
            boxes = torch.sigmoid(self.fc(x)) * 640
            return boxes[:, :32] * boxes[:, 32:]  # <- G201
            """)),
        Example("pixels compared with prototypes of pixels", model_file(
            "return self.fc((x @ self.bank.t()).softmax(-1))  # <- G201",
            batch="torch.randint(0, 256, (32, 4096)).float()",
            init="self.fc = nn.Linear(64, 64)\nself.bank = nn.Parameter(255 * torch.rand(64, 4096))"),
            options={"evidence": True}),
        Example("counters of the batch that autocast casts", model_file(
            "return self.fc(x)  # <- G201", batch="1000.0 * torch.arange(2048.0).view(32, 64)"),
            options={"evidence": True}),
        Example("the distance to the far end in the dtype of a density", model_file(
            """
            density = self.fc(x).relu()
            far = torch.full((32, 1), 1e10, device=x.device).to(density.dtype)
            steps = torch.cat([torch.ones(32, 63, device=x.device, dtype=density.dtype), far], -1)
            return torch.exp(-density * steps)  # <- G201
            """)),
    )  # fmt: skip
    VALID = (
        Example("the distance to the far end in FP32", model_file(
            """
            density = self.fc(x).relu().float()
            far = torch.full((32, 1), 1e10, device=x.device)
            steps = torch.cat([torch.ones(32, 63, device=x.device), far], -1)
            return torch.exp(-density * steps)
            """)),
        Example("pixels from 0 to 1, and weights of both signs", model_file(
            "return self.fc((x @ self.bank.t()).softmax(-1)) + self.fc(255 * x @ self.mix)",
            batch="torch.rand(32, 4096)",
            init="self.fc = nn.Linear(64, 64)\nself.bank = nn.Parameter(torch.rand(64, 4096))\n"
                 "self.mix = nn.Parameter(torch.randn(4096, 64))"), options={"evidence": True}),
        Example("minus infinity", model_file(
            """
            scores = self.fc(x) @ x.T
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, float("-inf")).softmax(-1)
            """)),
        Example("a mask times the limit of its own dtype", model_file(
            """
            h = self.fc(x)
            mask = (1.0 - (h[:, :1] > 0).to(h.dtype)) * torch.finfo(h.dtype).min
            return (h + mask).softmax(-1)
            """)),
        Example("scores cast up first", model_file(
            """
            scores = (self.fc(x) @ x.T).float()
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, -1e9).softmax(-1)
            """)),
        Example("a large factor of what is small", model_file("return torch.sigmoid(self.fc(x)) * 1e4")),
        Example("areas of boxes in FP32", model_file(
            """
            boxes = torch.sigmoid(self.fc(x)).float() * 640
            return boxes[:, :32] * boxes[:, 32:]
            """)),
        Example("counters of the batch, as logarithms", model_file(
            "return self.fc(torch.log1p(x))", batch="1000.0 * torch.arange(2048.0).view(32, 64)"),
            options={"evidence": True}),
        Example("a constant that fp16 can hold", model_file(
            """
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return torch.where(mask, torch.tensor(-1e4, device=x.device), self.fc(x) @ x.T).softmax(-1)
            """)),
        Example("the same number in bf16", model_file("return self.fc(x) + 1e6"),
                options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op and reason."""
        told: set[str] = set()
        for site in context.graph:
            runs = delivering(context, site, Format.FP16)
            if site.op not in _JUDGED or not runs or is_settled(context, site):
                continue
            number = number_outside(runs[0], site)
            if number is not None:
                found = self._number(context, site, runs, number)
                if found.severity is Severity.ERROR:
                    told.add(site.id)  # it raises, so that its values are of no interest
                yield found
            elif (limit := factor_limit(runs, site)) is not None and (limit < 1 or not is_saturated(context, site)):
                yield context.finding(
                    self,
                    site,
                    f"this {called(site)} passes 65504 from |x| = {limit:.3g}, infinity in fp16 "
                    f"(under {recipes_in(runs)}); use a smaller factor, or float32",
                    severity=Severity.WARNING if limit < 1 else Severity.INFO,
                    limit=limit,
                    format="fp16",
                )
        yield from self._narrowed(context)
        yield from self._infinite(context)
        yield from self._given(context)
        yield from self._worked_out(context)
        yield from self._grown(context)
        yield from self._certain(context)
        yield from self._summed(context)
        bounded = {site.id: found for site, found in self._bounded(context)}
        yield from bounded.values()
        over = seen_outside(context)
        yield from self._seen(context, told, over)
        yield from self._possible(context, told | over.keys() | bounded.keys(), first=not over)

    def _number(self, context: GraphContext, site: Site, runs: tuple[Run, ...], number: float) -> Finding:
        filled = _filled_with(runs[0], site, number)
        raises = bool(filled) or (site.op in _FILLS and number in literals(site))
        return context.finding(
            self,
            site,
            f"{number:g} is outside of fp16 (65504): this {filled or called(site)} "
            f"{'raises' if raises else 'gives infinity'} in fp16 (under {recipes_in(runs)}); "
            f"{_instead(site, filled, number)}",
            severity=Severity.ERROR if raises else Severity.WARNING,
            value=number,
            format="fp16",
            **({"stops": stopped(runs)} if raises else {}),
        )

    def _narrowed(self, context: GraphContext) -> Iterable[Finding]:
        """What was made with a large literal in FP32 and is then cast to FP16, as masks are."""
        for site in context.graph:
            for run in context.runs:
                number = next((n for place in range(len(site.inputs)) for n in lost_in_cast(run, site, place)), None)
                if number is not None:
                    yield context.finding(
                        self,
                        site,
                        f"an operand made with {number:g} is cast to fp16 (under {recipes_in((run,))}), where it is "
                        "infinite (65504): use torch.finfo(x.dtype).min, or float32",
                        value=number,
                        format="fp16",
                        chain=chain(context, site),
                    )
                    break

    def _infinite(self, context: GraphContext) -> Iterable[Finding]:
        """Factors that are worked out from constants and that FP16 holds as infinity, in part or all."""
        run = next((run for run in context.runs if run.recipe.half is Format.FP16), None)
        if run is None:
            return
        for site in context.graph:
            number = infinite_factor(run, site) if site.op in FACTORS and not is_settled(context, site) else None
            if number is not None:
                yield context.finding(
                    self,
                    site,
                    f"a factor holds {number:.4g}, which fp16 has as infinity (under {recipes_in((run,))}): the "
                    "product is infinite, and NaN where the other one is zero; use a number under 65504, or float32",
                    severity=Severity.WARNING,
                    value=number,
                    format="fp16",
                    chain=chain(context, site),
                )

    def _given(self, context: GraphContext) -> Iterable[Finding]:
        """Numbers of the batch that a cast to FP16 makes infinite."""
        run = next((run for run in context.runs if run.recipe.half is Format.FP16), None)
        bounds = context.bounds(run) if run is not None else None
        if run is None or bounds is None:
            return
        for site in context.graph:
            inputs = run.dtypes[site.id].inputs
            for position in site.attrs.get("batch") or {}:
                found = bounds.arriving(site, position)
                is_cast = site.inputs[position].is_floating and inputs[position] == "float16"
                if is_cast and found.is_known and LIMIT < found.magnitude < math.inf:
                    yield context.finding(
                        self,
                        site,
                        f"numbers of the batch go from {found.low:.4g} to {found.high:.4g} in make_batch(), and are "
                        f"cast to fp16 for this {called(site)} (under {recipes_in((run,))}): infinity over 65504; "
                        "scale them, or take their logarithm, before the model",
                        severity=Severity.WARNING,
                        bound=[found.low, found.high],
                        format="fp16",
                    )
                    break

    def _worked_out(self, context: GraphContext) -> Iterable[Finding]:
        """What is worked out from the batch alone in FP32, and cast to FP16 though its bound is over it."""
        run = next((run for run in context.runs if run.recipe.half is Format.FP16), None)
        bounds = context.bounds(run) if run is not None else None
        if run is None or bounds is None:
            return
        for site in context.graph:
            for position, source in enumerate(bounds.sources(site)):
                if source not in context.graph or source in context.weighted or source == site.id:
                    continue
                found, made = bounds.arriving(site, position), context.graph[source]
                if is_settled(context, made) or not may_be_outside(found) or not only_grows(context, made):
                    continue
                dtypes = run.dtypes[site.id]
                if (dtypes.given[position], dtypes.inputs[position]) == ("float32", "float16"):
                    yield context.finding(
                        self,
                        site,
                        f"what is worked out from the batch may reach {found.magnitude:.3g}, and is cast to fp16 for "
                        f"this {called(site)} (under {recipes_in((run,))}): infinity over 65504; scale it first, or "
                        "run this in float32 with autocast off",
                        severity=Severity.INFO,
                        bound=[found.low, found.high],
                        format="fp16",
                        chain=chain(context, site),
                    )
                    break

    def _grown(self, context: GraphContext) -> Iterable[Finding]:
        """Functions of numbers of the batch, which no weight has a part in, that FP16 holds, unlike their results."""
        for site in context.graph:
            runs = delivering(context, site, Format.FP16)
            if site.op not in _GROWING or not runs or is_settled(context, site):
                continue
            data, bounds = of_batch(context, site), context.bounds(runs[0])
            reach = bounds.exact(site) if bounds is not None else ANY
            if data.is_known and data.magnitude <= LIMIT and may_be_outside(reach):
                yield context.finding(
                    self,
                    site,
                    f"numbers of the batch in {data} give {reach.magnitude:.3g} by this {called(site)}, over fp16's "
                    f"65504: infinity under {recipes_in(runs)}; compute it in float32",
                    severity=Severity.WARNING,
                    bound=[reach.low, reach.high],
                    format="fp16",
                    chain=chain(context, site),
                )

    def _bounded(self, context: GraphContext) -> Iterable[tuple[Site, Finding]]:
        """Products of two tensors, each of them within FP16 by ops and literals alone, that may leave it together."""
        for site in context.graph:
            runs = delivering(context, site, Format.FP16)
            if site.op != "mul" or not runs or site.attrs.get("scalars") or is_settled(context, site):
                continue
            sides = [runs[0].ranges.operand(site, side) for side in (0, 1)]
            reach = runs[0].ranges.exact(site)
            if all(0 < side.magnitude <= LIMIT for side in sides) and may_be_outside(reach):
                found = context.finding(
                    self,
                    site,
                    f"a product of what lies in {sides[0]} and in {sides[1]} may reach {reach.magnitude:.3g}, over "
                    f"fp16's 65504: infinity under {recipes_in(runs)}; compute it in float32, or scale the two first",
                    severity=Severity.INFO,
                    bound=[reach.low, reach.high],
                    format="fp16",
                    chain=chain(context, site),
                )
                yield site, found

    def _summed(self, context: GraphContext) -> Iterable[Finding]:
        """Products of matrices without a negative number, of the batch and of weights, whose sums leave FP16."""
        for site in context.graph:
            runs = delivering(context, site, Format.FP16)
            bounds = context.bounds(runs[0]) if runs and site.gemms else None
            if bounds is None or is_settled(context, site) or any(s in context.weighted for s in bounds.sources(site)):
                continue
            sides, reach = [bounds.operand(site, side) for side in (0, 1)], bounds.exact(site)
            if not all(side.is_known and side.low >= 0 for side in sides) or math.isinf(reach.high):
                continue
            if reach.high * math.prod(_share(context, site, *each) for each in enumerate(sides)) > LIMIT * _SURE:
                yield context.finding(
                    self,
                    site,
                    f"a product of what lies in {sides[0]} and in {sides[1]}, none of it negative, adds up to as "
                    f"much as {reach.high:.3g}, over fp16's 65504: infinity under {recipes_in(runs)}; scale "
                    "one of the two first",
                    severity=Severity.INFO,
                    bound=[reach.low, reach.high],
                    format="fp16",
                    chain=chain(context, site),
                )

    def _certain(self, context: GraphContext) -> Iterable[Finding]:
        """Results of any op that are always outside."""
        for site in context.graph:
            runs = delivering(context, site, Format.FP16)
            if runs and not is_settled(context, site) and all(is_outside(run, site) for run in runs):
                found = runs[0].ranges.exact(site)
                yield context.finding(
                    self,
                    site,
                    f"the result of this {called(site)} lies in {found}, always outside of fp16 (65504): infinity "
                    f"under {recipes_in(runs)}{context.evidence.stated}",
                    format="fp16",
                    bound=[found.low, found.high],
                    chain=chain(context, site),
                )

    def _seen(self, context: GraphContext, told: Set[str], over: Mapping[str, Stat]) -> Iterable[Finding]:
        """Values that a recorded step showed to be outside: where they first are, and how many results follow."""
        for name, seen in over.items():
            site = context.graph[name]
            if name in told or any(before.id in over for before in context.graph.producers(name)):
                continue
            after = len(reached(context, name, over)) - 1
            more = f", and so {'are' if after > 1 else 'is'} {after} of the results after it" if after else ""
            yield context.finding(
                self,
                site,
                f"this {called(site)} gave {seen.magnitude:.4g} in a step on the batch, over fp16's 65504: infinity "
                f"under {recipes_in(delivering(context, site, Format.FP16))}{more}; compute it in float32",
                format="fp16",
                observed=[seen.low, seen.high],
                chain=chain(context, site),
            )

    def _possible(self, context: GraphContext, told: Set[str], *, first: bool) -> Iterable[Finding]:
        """All results whose bounds under the assumptions lie outside for certain, where ranges were asked for, and the
        ``first`` that may: where a step showed none."""
        run = next((run for run in context.runs if run.recipe.half is Format.FP16), None)
        bounds = context.bounds(run) if run and context.evidence.asked else None
        if run is None or bounds is None:
            return
        open_sites = [site for site in context.graph if site.id not in told and not is_settled(context, site)]
        outside = [site for site in open_sites if "float16" in run.dtypes[site.id].outputs
                   and may_be_outside(bounds.exact(site))]  # fmt: skip
        certain = [site for site in outside if lies_outside(bounds.exact(site))
                   and not lies_outside(run.ranges.exact(site))]  # fmt: skip
        for site in certain:
            yield context.finding(
                self,
                site,
                f"the result of this {called(site)} lies in {bounds.exact(site)}, outside of fp16 (65504), with "
                f"{context.evidence.words}",
                format="fp16",
                chain=chain(context, site),
            )
        if first and len(outside) > len(certain):
            yield self._first(context, run, next(site for site in outside if site not in certain), len(outside))

    def _first(self, context: GraphContext, run: Run, site: Site, count: int) -> Finding:
        bound = (context.bounds(run) or run.ranges).exact(site)
        observed = context.evidence.observed
        seen = observed.forward.get(site.id) if observed else None
        shown = f"; the step on the batch showed at most {seen.magnitude:.3g}" if seen else ""
        more = f", and {count - 1} more results" if count > 1 else ""
        return context.finding(
            self,
            site,
            f"by its bound {bound} this {called(site)} may leave fp16 (65504){more}, with {context.evidence.words}"
            f"{shown}",
            severity=Severity.INFO,
            format="fp16",
            bound=[bound.low, bound.high],
            chain=chain(context, site),
        )


def _instead(site: Site, filled: str, number: float) -> str:
    """What to write: a mask takes the limit of its own dtype, a mean or an offset is no mask."""
    is_mask = filled or number < 0 or site.op not in _ARITHMETIC or site.op == "where"
    return "use torch.finfo(x.dtype).min, or float32" if is_mask else "compute it in float32"


def _share(context: GraphContext, site: Site, side: int, found: Range) -> float:
    """What the numbers of a factor are of the largest on average: most of the counts of a batch may be zero."""
    name = (site.attrs.get("batch") or {}).get(input_of(site, side))
    mean = context.evidence.assumptions.means.get(name) if context.evidence.assumptions and name else None
    return _EVEN if mean is None or not found.high else min(mean / found.high, 1.0)


def _filled_with(run: Run, site: Site, number: float) -> str:
    """The op, as full_like, that makes an operand out of a number in the dtype of an FP16 tensor."""
    for place, op in (site.attrs.get("filled") or {}).items():
        bounds, given = run.ranges.arriving(site, place), run.dtypes[site.id].given
        if (
            place in (site.attrs.get("like") or {})
            and given[place] == "float16"
            and number in (bounds.low, bounds.high)
        ):
            return str(op)
    return ""
