"""G211: positions or counts that are rounded to 16 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.arguments import reduced_count
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.operands import input_of
from amptune.core.ranges import Ranges
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import by_autocast, delivering


class IntegersInLowPrecision(GraphRule):
    """Integers (positions, timesteps, counts) that enter a 16-bit op which cannot tell neighbours apart.

    ## What it does
    Reports ops that run in 16 bits on a tensor that the user's code made from integers of its own (arange, randint)
    with more of them than the format counts exactly: 256 in BF16, 2048 in FP16. Autocast does this to a matmul with
    positions. Integers of the batch, up to the largest one in it, are reported on their way to a sine or cosine alone,
    and so are its other numbers, as times, where the rounding moves the angle by a quarter of a radian and more. So is
    a sum of a mask that counts further than its format does, and a number computed in 16 bits that is cast to an
    integer and picks a row of a table with more of them.

    ## Why is this bad
    BF16 has no 257: positions 256 and 257 become one. Rotary embeddings computed so are wrong for long sequences.

    ## Example
    ```python
    angles = positions.float()[:, None] @ inv_freq[None, :]     # under bf16 autocast
    ```

    ## Use instead
    ```python
    with torch.autocast("cuda", enabled=False):
        angles = positions.float()[:, None] @ inv_freq[None, :]
    ```

    ## Fix safety
    No automatic fix.

    ## References
    transformers pull request 29285.
    """

    code = "G211"
    name = "integers-in-low-precision"
    severity = Severity.WARNING
    INVALID = (
        Example("rotary angles under autocast", model_file(
            """
            t = torch.arange(1024, device=x.device).float()
            angles = t[:, None] @ self.freq[None, :]  # <- G211
            return self.fc(x) * angles.cos()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            batch="torch.randn(2, 1024, 64)")),
        Example("timesteps in the dtype of the activations", model_file(
            """
            h = self.fc(x)
            angles = t.to(h.dtype)[:, None] * self.freq[None].to(h.dtype)  # <- G211
            return h + angles.sin()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), torch.arange(0, 960, 30))"), options={"evidence": True}),
        Example("times in the dtype of the activations", model_file(
            """
            h = self.fc(x)
            angles = t.to(h.dtype)[:, None] * self.freq[None]  # <- G211
            return h + angles.sin()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), torch.rand(32) * 5000)"), options={"evidence": True}),
        Example("dates that the code casts to BF16", model_file(
            """
            angles = t.to(torch.bfloat16)[:, None] * self.freq.to(torch.bfloat16)  # <- G211
            return self.fc(x) + angles.sin().to(x.dtype)
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), 58000 + torch.rand(32) * 400)"), options={"evidence": True}),
        Example("a count of tokens in the dtype of the losses", model_file(
            """
            h = self.fc(x)
            keep = (x[:, :8] > 0).to(h.dtype)
            return (h[:, :8] * keep).sum(0) / keep.sum()  # <- G211
            """, cast=".bfloat16()", batch="torch.randn(4096, 64).bfloat16()")),
        Example("times between stamps in FP16", model_file(
            "return self.fc((t.half()[:, 1:] - t.half()[:, :-1]).float() / 60)  # <- G211", takes="t",
            batch="torch.arange(2080.0).view(32, 65) * 7"), options={"evidence": True}),
    )  # fmt: skip
    VALID = (
        Example("times between stamps, subtracted in FP32", model_file(
            "return self.fc((t[:, 1:] - t[:, :-1]).half().float() / 60)", takes="t",
            batch="torch.arange(2080.0).view(32, 65) * 7"), options={"evidence": True}),
        Example("differences of coordinates in FP16", model_file(
            "return self.fc((t.half()[:, 1:] - t.half()[:, :-1]).float() / 60)", takes="t",
            batch="torch.rand(32, 65)"), options={"evidence": True}),
        Example("times that 16 bits tell apart", model_file(
            """
            h = self.fc(x)
            angles = t.to(h.dtype)[:, None] * self.freq[None]
            return h + angles.sin()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), torch.rand(32))"), options={"evidence": True}),
        Example("a count of tokens in FP32", model_file(
            """
            h = self.fc(x)
            keep = (x[:, :8] > 0).float()
            return (h[:, :8] * keep).sum(0) / keep.sum()
            """, cast=".bfloat16()", batch="torch.randn(4096, 64).bfloat16()")),
        Example("timesteps in FP32", model_file(
            """
            h = self.fc(x)
            angles = t.float()[:, None] * self.freq[None]
            return h + angles.sin().to(h.dtype)
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), torch.arange(0, 960, 30))"), options={"evidence": True}),
        Example("autocast off", model_file(
            """
            with torch.autocast(x.device.type, enabled=False):
                t = torch.arange(1024, device=x.device).float()
                angles = t[:, None] @ self.freq[None, :]
            return self.fc(x) * angles.cos()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            batch="torch.randn(2, 1024, 64)")),
        Example("an elementwise product stays FP32", model_file(
            """
            t = torch.arange(1024, device=x.device).float()
            angles = t[:, None] * self.freq[None, :]
            return self.fc(x) * angles.cos()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            batch="torch.randn(2, 1024, 64)")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such op."""
        for site in context.graph:
            for length, number_format, runs in self._rounded(context, site):
                yield context.finding(
                    self,
                    site,
                    f"integers 0 to {length - 1} are rounded to {number_format} (under {recipes_in(runs)}), which "
                    "has no "
                    f"{number_format.largest_exact_integer + 1}: compute this in float32{_how(runs, site)}",
                    count=length,
                    format=str(number_format),
                )
                break
            else:
                yield from self._moved(context, site)
                yield from self._subtracted(context, site)
                yield from self._counted(context, site)
                yield from self._looked_up(context, site)

    def _moved(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """Numbers of the batch that are no integers, rounded on their way to a sine or cosine."""
        if not site.attrs.get("batch") or not _is_turned(context, site):
            return
        for number_format in (Format.BF16, Format.FP16):
            for run in context.runs:
                largest, turn = _largest_turn(context, run, site, number_format)
                if turn / 2 < COARSE:
                    continue
                yield context.finding(
                    self,
                    site,
                    f"numbers of the batch up to {largest:.4g} are rounded to {number_format} (under "
                    f"{recipes_in((run,))}) on their way to a sine or cosine: neighbouring angles are {turn:.3g} rad "
                    f"apart there; compute the angle in float32{_how((run,), site)}",
                    largest=largest,
                    format=str(number_format),
                )
                return

    def _subtracted(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """Differences of numbers of one tensor of the batch, as of timestamps, that were rounded before."""
        places = site.attrs.get("batch") or {}
        if site.op not in _DIFFERENCES or len(places) != len(site.inputs) or len(set(places.values())) != 1:
            return
        for number_format in (Format.BF16, Format.FP16):
            name = number_format.torch_name
            runs = tuple(run for run in context.runs if all(each == name for each in run.dtypes[site.id].inputs))
            largest = max((_stored_size(context, run, site) for run in runs), default=0.0)
            if number_format.largest_exact_integer < largest < math.inf:
                step = number_format.epsilon * 2.0 ** math.floor(math.log2(largest))
                yield context.finding(
                    self,
                    site,
                    f"differences of numbers of the batch up to {largest:.4g} that were rounded to {number_format} "
                    f"(under {recipes_in(runs)}): neighbouring numbers are {step:g} apart there; subtract in the "
                    "format of the batch, and cast the difference",
                    largest=largest,
                    format=str(number_format),
                )
                return

    def _counted(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """Sums of a mask in 16 bits."""
        if site.op != "sum" or 0 not in site.attrs.get("tested", ()):
            return
        count = reduced_count(site)
        for number_format in (Format.BF16, Format.FP16):
            runs = delivering(context, site, number_format)
            if runs and count > number_format.largest_exact_integer:
                yield context.finding(
                    self,
                    site,
                    f"a count of up to {count} is rounded to {number_format} (under {recipes_in(runs)}), which has no "
                    f"{number_format.largest_exact_integer + 1}: count in float32",
                    count=count,
                    format=str(number_format),
                )
                return

    def _looked_up(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """Numbers computed in 16 bits that are cast to integers and then pick a row of a table."""
        rows = max((_rows_picked(after, site) for after in context.graph.consumers(site.id)), default=0)
        for number_format in (Format.BF16, Format.FP16):
            most = number_format.largest_exact_integer
            if rows <= most + 1:
                continue
            runs = delivering(context, site, number_format)
            runs = tuple(run for run in runs if _reach(context, run, site) > most)
            if runs:
                yield context.finding(
                    self,
                    site,
                    f"the numbers of {rows} rows are computed in {number_format} (under {recipes_in(runs)}), which has "
                    f"no {most + 1}: many rows are never picked, and others in their place; compute the number in "
                    f"integers, or in float32{' with autocast off' if by_autocast(runs, site) else ''}",
                    count=rows,
                    format=str(number_format),
                )
                return

    def _rounded(self, context: GraphContext, site: Site) -> Iterable[tuple[int, Format, tuple[Run, ...]]]:
        made = {**(site.attrs.get("integers") or {}), **_given(context, site)}
        for index, length in made.items():
            for number_format in (Format.BF16, Format.FP16):
                name = number_format.torch_name
                runs = tuple(run for run in context.runs if run.dtypes[site.id].inputs[index] == name)
                if runs and length > number_format.largest_exact_integer:
                    yield length, number_format, runs


_DIFFERENCES = ("sub", "diff")
_EXACT = ("float32", "float64", "int64", "int32")


def _how(runs: tuple[Run, ...], site: Site) -> str:
    """What keeps a computation in FP32: autocast's own casts end with it, the user's with the cast."""
    return " with autocast off" if by_autocast(runs, site) else ", and cast what comes of it"


def _stored_size(context: GraphContext, run: Run, site: Site) -> float:
    """How large the numbers of the batch are that a site reads, and that the batch holds in more digits."""
    bounds, cast = context.bounds(run), _cast_inputs(site)
    if bounds is None or not all(tensor.dtype in _EXACT or at in cast for at, tensor in enumerate(site.inputs)):
        return 0.0
    return max(bounds.arriving(site, position).magnitude for position in range(len(site.inputs)))


def _cast_inputs(site: Site) -> set[int]:
    """Positions of the inputs that the code casts."""
    return {*(site.attrs.get("casts") or {}), *(site.attrs.get("like") or {})}


def _reach(context: GraphContext, run: Run, site: Site) -> float:
    """How large the numbers of a site may be: clamped ones, or codes of a few bits, may pick the first rows alone."""
    bounds = context.bounds(run)
    return min(each[site.id].magnitude for each in (run.ranges, bounds or run.ranges))


_TABLES = ("embedding", "embedding_bag", "index_select", "gather", "index")


def _rows_picked(table: Site, number: Site) -> int:
    """How many rows a lookup has whose row numbers are the floating numbers of another site, cast to integers."""
    reads = any(
        source == number.id and tensor.dtype in ("int64", "int32")
        for source, tensor in zip(table.sources, table.inputs, strict=False)
    )
    if table.op not in _TABLES or not reads or not all(output.is_floating for output in number.outputs):
        return 0
    shape = table.params[0].meta.shape if table.params else table.inputs[0].shape if len(table.inputs) > 1 else ()
    dim = table.attrs.get("dim", 0)
    if table.op == "index" and (table.attrs.get("operands") or ())[1:] != [0 if table.params else 1]:
        return 0  # of several axes
    return shape[dim] if isinstance(dim, int) and dim < len(shape) else 0


COARSE = 0.25
"""Radians by which the rounding of a number may move an angle without a word."""
_TURNS = ("sin", "cos", "sinc")
_ON_THE_WAY = ("mul", "div", "add", "sub", "cat", "stack", "outer", "einsum", "matmul")
_STEPS = 4


def _given(context: GraphContext, site: Site) -> dict[int, int]:
    """How far the integers of the batch go that a site reads on their way to a sine or cosine."""
    places = site.attrs.get("batch_integers", ())
    bounds = context.bounds(context.runs[0]) if places and context.runs else None
    if bounds is None or not _is_turned(context, site):
        return {}
    found = {index: bounds.input(site, index).high for index in places}
    return {index: int(high) + 1 for index, high in found.items() if math.isfinite(high)}


def _largest_turn(context: GraphContext, run: Run, site: Site, number_format: Format) -> tuple[float, float]:
    """The largest number of the batch that a site reads rounded to a format, and how far apart the angles are that it
    makes of it and its neighbour; zeros where it does not read one so."""
    bounds = context.bounds(run)
    for position in site.attrs["batch"]:
        tensor = site.inputs[position]
        is_held = tensor.dtype == "float32" or position in _cast_inputs(site)
        is_rounded = is_held and run.dtypes[site.id].inputs[position] == number_format.torch_name
        if bounds is None or not is_rounded:
            continue
        largest = bounds.arriving(site, position).magnitude
        if 0 < largest < math.inf:
            step = number_format.epsilon * 2.0 ** math.floor(math.log2(largest))
            return largest, step * _factor(bounds, site, position)
    return 0.0, 0.0


def _factor(bounds: Ranges, site: Site, position: int) -> float:
    """What a site multiplies one of its inputs by, at most; 0 where that is not known."""
    if site.op not in ("mul", "div", "outer", "einsum", "matmul"):
        return 1.0
    places = [place for place in (0, 1) if input_of(site, place) != position]
    if len(places) != 1:
        return 0.0
    other = bounds.operand(site, places[0])
    if site.op == "div":
        return 1 / other.least if other.least > 0 else 0.0
    return other.magnitude if math.isfinite(other.magnitude) else 0.0


def _is_turned(context: GraphContext, site: Site, steps: int = _STEPS) -> bool:
    if site.op in _TURNS:
        return True
    if not steps or site.op not in _ON_THE_WAY:
        return False
    return any(_is_turned(context, after, steps - 1) for after in context.graph.consumers(site.id))
