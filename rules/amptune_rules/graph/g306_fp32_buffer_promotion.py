"""G306: an FP32 buffer or parameter that promotes 16-bit activations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from amptune.core.autocast import HALF, sources_of
from amptune.core.bounds.intervals import Range
from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import INPUT, Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.hardware import Gpu
from amptune.core.ops import Autocast, Family, op_named
from amptune.core.roofline import Traffic, traffic_seconds
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import reads_weights_alone

WORTH = 0.005


class Fp32BufferPromotion(GraphRule):
    """A 16-bit activation combined with an FP32 buffer, parameter or constant: the result is FP32.

    ## What it does
    Under each autocast recipe, finds pointwise ops and concatenations with one large 16-bit operand from the model and
    one FP32 operand that is stored or worked out from parameters alone (`exp(self.tau) * q`), whose result is FP32 and
    costs a noticeable part of the predicted step. Left out are results that are only read in FP32, by a loss or after
    `.float()`, and operands that the 16-bit format does not hold (masks of -1e9, in FP16 a layer scale of 1e-6).

    ## Why is this bad
    Everything after it works on twice the bytes until the next product casts down. A mask, a scale or a positional
    table rarely needs that; a residual stream in FP32 may be wanted.

    ## Example
    ```python
    x = self.conv(x) + self.positions          # float32 parameter
    ```

    ## Use instead
    ```python
    x = self.conv(x)
    x = x + self.positions.to(x.dtype)
    ```

    ## Fix safety
    Information where autocast does it; a warning in a model that was cast to 16 bits as a whole.

    ## References
    torch type promotion.
    """

    code = "G306"
    name = "fp32-buffer-promotion"
    severity = Severity.WARNING
    INVALID = (
        Example("a scale kept in FP32", model_file(
            "return self.down(F.silu(self.up(x) * self.scale))  # <- G306",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)\n"
            "self.register_buffer('scale', torch.ones(1024))", batch="torch.randn(65536, 64)")),
        Example("a temperature worked out from a parameter", model_file(
            "return self.down(F.silu(self.up(x) * torch.exp(self.tau)))  # <- G306",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)\n"
            "self.tau = nn.Parameter(torch.zeros(1024))", batch="torch.randn(65536, 64)")),
    )  # fmt: skip
    VALID = (
        Example("a temperature without dimensions", model_file(
            "return self.down(F.silu(self.up(x) * torch.exp(self.tau)))",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)\n"
            "self.tau = nn.Parameter(torch.zeros(()))", batch="torch.randn(65536, 64)")),
        Example("a number", model_file(
            "return self.down(F.silu(self.up(x) * 2.0))",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)", batch="torch.randn(65536, 64)")),
        Example("logits that the loss reads in FP32", model_file(
            "return F.cross_entropy(self.up(x) + self.bias, x.argmax(1))",
            init="self.up = nn.Linear(64, 1024)\nself.register_buffer('bias', torch.ones(1024))",
            batch="torch.randn(65536, 64)")),
        Example("a mask that 16 bits do not hold", model_file(
            "h = self.up(x)\nmask = torch.full((1024, 1024), torch.finfo(torch.float32).min, device=x.device).triu(1)\n"
            "return self.down(torch.relu(h.view(64, 1024, 1024) + mask))",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)", batch="torch.randn(65536, 64)")),
        Example("cast first", model_file(
            "h = self.up(x)\nreturn self.down(F.silu(h * self.scale.to(torch.bfloat16)))",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)\n"
            "self.register_buffer('scale', torch.ones(1024))", batch="torch.randn(65536, 64)"),
            options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such op, under the first recipe in which it happens."""
        found: list[tuple[Site, tuple[Run, ...], int]] = []
        runs = [run for run in context.runs if run.device == "cuda" and _is_native(context, run)]
        for site in context.graph:
            extra = {run: _extra_bytes(context, run, site) for run in runs}
            if those := tuple(run for run in runs if extra[run]):
                written = tuple(run for run in those if run.recipe.half is None)
                found.append((site, written or those, max(extra.values())))
        by_line: dict[object, list[int]] = {}
        for site, _, moved in found:
            by_line.setdefault(_line(site), []).append(moved)
        for site, those, moved in found:
            own = those[0].recipe.half is None
            if own or _is_worth(context, those, by_line[_line(site)]):
                under = "in the model as written" if own else recipes_in(those)
                yield context.finding(
                    self,
                    site,
                    f"a float32 tensor promotes this {site.op} of 16-bit activations to float32 "
                    f"({under}){_with_it(context, those[0], site)}: cast it "
                    "to the activations' dtype",
                    severity=Severity.WARNING if own else Severity.INFO,
                    bytes=moved,
                    saves_ms={gpu.key: _seconds(moved, gpu) * 1e3 for gpu in _gpus(context, those)},
                )


_PRODUCTS = (Family.GEMM, Family.CONV, Family.ATTENTION)
_CARRY = (Family.POINTWISE, Family.VIEW)
_STEPS = 4


def _with_it(context: GraphContext, run: Run, site: Site) -> str:
    """The product that runs in FP32 because its operand was promoted, for a message; empty where none does."""
    fresh = [site]
    for _ in range(_STEPS):
        after = [each for before in fresh for each in context.graph.consumers(before.id)]
        products = [each for each in after if op_named(each.op).family in _PRODUCTS]
        wide = next((each for each in products if run.dtypes[each.id].compute == "float32"), None)
        if wide is not None:
            return f", and the {wide.op} that reads it runs in float32 with it"
        fresh = [each for each in after if op_named(each.op).family in _CARRY]
    return ""


def _line(site: Site) -> object:
    return site.op, site.location or site.id


def _is_native(context: GraphContext, run: Run) -> bool:
    half = run.recipe.half
    return half is None or any(gpu.is_native(half) for gpu in context.tensor_core_gpus())


def _gpus(context: GraphContext, runs: tuple[Run, ...]) -> list[Gpu]:
    """GPUs whose best 16-bit format is one of those in which the cast is advised."""
    formats = {run.recipe.half for run in runs}
    return [gpu for gpu in context.tensor_core_gpus() if None in formats or gpu.best_16bit in formats]


def _seconds(moved: int, gpu: Gpu) -> float:
    return traffic_seconds(moved, Traffic.POINTWISE, gpu)


def _is_worth(context: GraphContext, runs: tuple[Run, ...], moved: Sequence[int]) -> bool:
    """Whether all sites of a line take a noticeable part of the step together."""
    shares = [
        context.step_share(gpu, run.recipe.name, sum(_seconds(each, gpu) for each in moved) * 1e3)
        for run in runs
        for gpu in context.tensor_core_gpus()
    ]
    return any(share is not None and share >= WORTH for share in shares)


def _extra_bytes(context: GraphContext, run: Run, site: Site) -> int:
    """Bytes by which the result and its gradient are wider; 0 where nothing was promoted so."""
    family = op_named(site.op).family
    if not (family is Family.POINTWISE or site.op in ("cat", "stack")) or not site.outputs:
        return 0
    dtypes = run.dtypes[site.id]
    if "float32" not in dtypes.outputs:
        return 0
    sources = sources_of(context.graph, site)
    half = [index for index, dtype in enumerate(dtypes.inputs) if dtype in HALF and sources[index] in context.graph]
    wide = [index for index, dtype in enumerate(dtypes.inputs) if dtype == "float32"]
    made = [index for index in wide if _is_made(context, sources[index])]
    stored = [index for index in wide if index not in made and sources[index] != INPUT and site.inputs[index].shape]
    wide_params = any(dtype == "float32" for dtype in dtypes.params)
    large = any(site.inputs[index].numel == site.outputs[0].numel for index in half)
    if not large or made or not (stored or wide_params) or _is_cast_up(context, run, site):
        return 0
    return 8 * site.outputs[0].numel if _fits(context, run, site, stored) else 0


def _is_cast_up(context: GraphContext, run: Run, site: Site) -> bool:
    """Whether all that reads the result casts it to FP32 itself, as a loss or ``.float()``: in 16 bits it would be one
    cast more."""
    readers = [
        (consumer, place)
        for consumer in context.graph.consumers(site.id)
        for place, source in enumerate(consumer.sources)
        if source == site.id
    ]
    return bool(readers) and all(_casts_up(run, consumer, place) for consumer, place in readers)


def _casts_up(run: Run, consumer: Site, place: int) -> bool:
    named = consumer.attrs.get("dtype") if op_named(consumer.op).family is Family.CAST else None
    if "float32" in ((consumer.attrs.get("casts") or {}).get(place), named):
        return True
    by_autocast = run.recipe.autocast is not None and consumer.attrs.get("autocast") is not False
    return by_autocast and op_named(consumer.op).cuda is Autocast.FP32


def _fits(context: GraphContext, run: Run, site: Site, stored: Sequence[int]) -> bool:
    """Whether the FP32 numbers are, as far as they are known, numbers of the activations' format: neither a mask of
    -1e9 nor a scale of 1e-6, of which FP16 keeps one digit."""
    half = next((Format.parse(dtype) for dtype in run.dtypes[site.id].inputs if dtype in HALF), None)
    bounds = context.bounds(run) or run.ranges
    known = [bounds.input(site, index) for index in stored]
    names = [param.name for param in site.params] + [*(site.attrs.get("operand_params") or {}).values()]
    known += [weight.range for name in names if (weight := bounds.assumed.weights.get(str(name)))]
    return half is None or all(_holds(half, each) for each in known)


def _holds(half: Format, values: Range) -> bool:
    finite = [abs(value) for value in (values.low, values.high) if math.isfinite(value)]
    largest = max(finite, default=0.0)
    return largest == 0 or half.smallest_normal <= largest <= half.max


def _is_made(context: GraphContext, source: str) -> bool:
    """Whether a tensor has activations in it: not what is stored, nor worked out from parameters alone."""
    return source in context.graph and not reads_weights_alone(context, context.graph[source])
