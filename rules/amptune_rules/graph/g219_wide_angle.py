"""G219: a sine or cosine of many radians in 16 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.bounds.intervals import Range
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import input_of
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

WIDE = 6.0
"""Radians, about a turn, from which an angle is worth a word."""
COARSE = 1 / 64
"""Radians by which an angle may be off without a word."""
_SCALES = ("mul", "div")


class WideAngle(GraphRule):
    """A sine or cosine, in 16 bits, of what a literal factor spreads over a turn and more.

    ## What it does
    Reports sin and cos of a 16-bit product with a literal factor of 6 and more, as `sin(30 * x)` and `cos(2 * pi * x)`,
    which nothing bounds below that, and of positions times frequencies, where the largest angle is known, and says how
    far apart neighbouring angles are there. Autocast leaves both in the format of what they read; a cast to FP32
    between the product and its sine brings nothing back.

    ## Why is this bad
    A 16-bit number has a fixed count of digits, and those before the point are missing behind it: BF16 knows no angle
    between 30 and 30.125. Networks of sines (SIREN) and random Fourier features lose the high frequencies for which
    their factor is there.

    ## Example
    ```python
    return torch.sin(30 * self.linear(x))
    ```

    ## Use instead
    ```python
    with torch.autocast(x.device.type, enabled=False):
        return torch.sin(30 * self.linear(x.float()))
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Implicit Neural Representations with Periodic Activation Functions (NeurIPS 2020); torch.finfo.
    """

    code = "G219"
    name = "wide-angle"
    severity = Severity.INFO
    by_calls = True
    INVALID = (
        Example("a layer of sines", model_file("return torch.sin(30 * self.fc(x))  # <- G219")),
        Example("an angle that is cast after it was rounded", model_file(
            "return torch.sin((30 * self.fc(x)).float())  # <- G219")),
        Example("random Fourier features", model_file(
            "return torch.cos(2 * torch.pi * (x @ self.b))  # <- G219",
            init="self.fc = nn.Linear(64, 64)\nself.register_buffer('b', 10 * torch.randn(64, 64))")),
    )  # fmt: skip
    VALID = (
        Example("the layer in FP32", model_file(
            """
            with torch.autocast(x.device.type, enabled=False):
                return torch.sin(30 * self.fc(x))
            """)),
        Example("an angle that is bounded", model_file("return torch.sin(3.14 * torch.tanh(self.fc(x)))")),
        Example("a periodic activation of ordinary numbers", model_file("return torch.sin(self.fc(x))")),
        Example("a factor whose product is FP32", model_file("return self.fc(torch.sin(30 * x))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each sine and cosine, with the coarsest format that it runs in."""
        told: dict[tuple[str, object], str] = {}
        for site in context.graph:
            half = tuple(run for run in context.runs if _comes_in_half(run, site)) if site.op in ("sin", "cos") else ()
            if not half:
                continue
            made = half[0].ranges.root(site)
            pair = "" if made is None else made.id, site.location.line if site.location else site.id
            if told.setdefault(pair, site.op) != site.op:
                continue  # sine and cosine of one angle
            table = _largest_of_positions(context, half[0], site)
            angle = table or _angle(half[0], site)
            what = "angles up to" if table else "what is multiplied by"
            further = "" if table else ", and more at larger ones"
            for number_format in (Format.BF16, Format.FP16):
                step = _step(number_format, angle)
                runs = tuple(run for run in half if _format_of(run, site) is number_format)
                if runs and angle >= WIDE and step / 2 >= COARSE:
                    yield context.finding(
                        self,
                        site,
                        f"{site.op} in {number_format} (under {recipes_in(runs)}) of {what} {angle:.4g}: at "
                        f"{angle:.4g} neighbouring angles are {step:.3g} apart{further}; compute the product and its "
                        "sine and cosine in float32",
                        factor=angle,
                        step=step,
                        format=str(number_format),
                    )
                    break


def _format_of(run: Run, site: Site) -> Format | None:
    """The 16-bit format that an angle was rounded to: its own product's, or that in which the sine reads it."""
    made, dtypes = run.ranges.root(site), run.dtypes[site.id]
    passed = {*dtypes.inputs, *(run.dtypes[made.id].outputs if made is not None else ())}
    return next((each for each in (Format.BF16, Format.FP16) if each.torch_name in passed), None)


def _comes_in_half(run: Run, site: Site) -> bool:
    """Whether an angle is rounded to 16 bits before its sine, which may be taken in FP32."""
    return _format_of(run, site) is not None and not run.dtypes[site.id].raises


def _largest_of_positions(context: GraphContext, run: Run, site: Site) -> float:
    """The largest angle of a table that is worked out from constants, or from integers of the batch, as positions are,
    times frequencies; 0 for others, and for integers that the format does not have, which G211 tells of."""
    made = run.ranges.root(site)
    if made is None or made.op not in _TABLES or made.id in context.weighted:
        return 0.0
    bounds = context.bounds(run) or run.ranges
    if not run.ranges.is_constant(made) and not made.attrs.get("batch_integers"):
        return 0.0
    number_format = _format_of(run, site)
    factors = [bounds.operand(made, place).magnitude for place in (0, 1)]
    found = bounds.operand(site, 0).magnitude
    is_told = number_format is None or any(number_format.largest_exact_integer < each < math.inf for each in factors)
    return found if math.isfinite(found) and not is_told else 0.0


_TABLES = ("mul", "einsum", "outer", "matmul", "mm", "bmm")


def _angle(run: Run, site: Site) -> float:
    """The angle that a factor of the user's makes of 1, or the largest one where that is less; 0 without a factor."""
    made = run.ranges.root(site)
    if made is not None and made.op in _PRODUCTS:
        return min(_largest_of_table(run, made), run.ranges.operand(site, 0).magnitude)
    scalars = list((made.attrs.get("scalars") or {}).items()) if made is not None and made.op in _SCALES else []
    if made is None or len(scalars) != 1 or not scalars[0][1]:
        return 0.0
    ((place, value),) = scalars
    if made.op == "div" and place == 0:
        return 0.0
    factor = abs(float(value)) if made.op == "mul" else 1 / abs(float(value))
    return min(factor, run.ranges.operand(site, 0).magnitude)


_PRODUCTS = ("matmul", "mm", "einsum", "linear")


def _largest_of_table(run: Run, product: Site) -> float:
    """The angle that a product makes of 1: the largest number of the table of frequencies that it is with, times what a
    literal multiplies the other factor by; 0 where neither factor is such a table."""
    bounds = product.attrs.get("bounds") or {}
    for place in (0, 1):
        position = input_of(product, place)
        if position is not None and position in bounds and product.sources[position] not in (INPUT, ""):
            table = Range(*bounds[position]).magnitude
            made = run.ranges.root(product, 1 - place)
            scalars = list((made.attrs.get("scalars") or {}).values()) if made is not None and made.op == "mul" else []
            factor = abs(float(scalars[0])) if len(scalars) == 1 else 1.0
            return table * factor if table < math.inf else 0.0
    return 0.0


def _step(number_format: Format, angle: float) -> float:
    """How far apart the numbers of a format are at an angle."""
    return number_format.spacing_at(angle) if angle else 0.0
