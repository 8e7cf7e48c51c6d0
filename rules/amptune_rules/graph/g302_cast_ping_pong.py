"""G302: tensors that are cast up and down again around a cheap op, by autocast or by the code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from amptune.core.autocast import HALF, SiteDtypes
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.ops import Autocast, Family, op_named
from amptune.core.roofline import Traffic, traffic_seconds
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

WORTH = 0.01
_CHEAP = (Family.SENSITIVE, Family.POINTWISE, Family.REDUCTION)
_LOWERED = (Family.GEMM, Family.CONV, Family.ATTENTION)
_AROUND_ONE = (
    "reads 16-bit tensors that the code casts up, and its result is cast back: a pointwise op computes in float32 "
    "anyhow and rounds once, so that the casts change no number"
)
_CAST_UP = "casts its 16-bit input to float32 and the result reaches a product that casts it back"
_WIDENED = "gives float32 for its 16-bit input and the result reaches a product that casts it back"


class CastPingPong(GraphRule):
    """A 16-bit tensor that is cast to FP32 for a pointwise op and back to 16 bits for the next product.

    ## What it does
    Counts, under each autocast recipe, pointwise ops and reductions that autocast runs in FP32 on a 16-bit input and
    whose result reaches a matrix product, and prices the casts; reports those of 1 % of the predicted step and more,
    and single pointwise ops that the code itself casts around.
    Eager mode only: a compiler fuses casts.

    ## Why is this bad
    Each cast reads and writes the whole tensor, forward and backward, and everything between works on twice the bytes.
    In GPT-2's tanh form of GELU one pow puts the whole activation in FP32.

    ## Example
    ```python
    y = 0.5 * x * (1 + torch.tanh(c * (x + 0.044715 * torch.pow(x, 3))))
    ```

    ## Use instead
    ```python
    y = torch.nn.functional.gelu(x, approximate="tanh")
    ```

    ## Fix safety
    Information: the FP32 may be wanted.

    ## References
    ATen/autocast_mode.h (torch 2.13).
    """

    code = "G302"
    name = "cast-ping-pong"
    severity = Severity.INFO
    INVALID = (
        Example("GELU by hand", model_file(
            """
            h = self.up(x)
            h = 0.5 * h * (1 + torch.tanh(0.79788 * (h + 0.044715 * torch.pow(h, 3))))  # <- G302
            return self.down(h)
            """, init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)",
            batch="torch.randn(65536, 64)")),
        Example("a sum that is cast around", model_file(
            """
            h = self.up(x)
            h = (h.float() + h.flip(0).float()).to(h.dtype)  # <- G302
            return self.down(h)
            """, init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)",
            batch="torch.randn(65536, 64)")),
    )  # fmt: skip
    VALID = (
        Example("two ops in FP32, of which the second rounds", model_file(
            """
            h = self.up(x)
            h = (h.float() + h.flip(0).float() * 0.3).to(h.dtype)
            return self.down(h)
            """, init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)",
            batch="torch.randn(65536, 64)")),

        Example("the fused GELU", model_file(
            "return self.down(F.gelu(self.up(x), approximate='tanh'))",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)", batch="torch.randn(65536, 64)")),
        Example("a compiled model", model_file(
            "return self.down(torch.pow(self.up(x), 3))",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)", batch="torch.randn(65536, 64)"),
            options={"mode": "compile"}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op that starts such a detour."""
        if context.mode == "compile":
            return
        runs = tuple(run for run in context.runs if run.recipe.autocast is not None and run.device == "cuda")
        for run in runs[:1]:  # BF16 and FP16 move the same bytes
            lines: dict[tuple[object, str], list[tuple[Site, int]]] = {}
            for site in context.graph:
                if moved := _bytes_around_one(context, run, site):
                    told = _AROUND_ONE
                elif moved := _bytes_of_detour(context, run, site):
                    told = _WIDENED if op_named(site.op).cuda is Autocast.FP32_OUT else _CAST_UP
                else:
                    continue
                lines.setdefault((context.location(site), f"{site.op} {told}"), []).append((site, moved))
            for (_, told), same in lines.items():
                if self._is_worth(context, run, [moved for _, moved in same]):
                    for site, moved in same:
                        yield context.finding(
                            self,
                            site,
                            f"{told} (under {recipes_in(runs)})",
                            bytes=moved,
                            saves_ms=self._saved(context, moved),
                        )

    def _is_worth(self, context: GraphContext, run: Run, moved: Sequence[int]) -> bool:
        """Whether all sites of a line, as those of repeated blocks, take a noticeable part of the step together."""
        for gpu in context.tensor_core_gpus():
            milliseconds = sum(traffic_seconds(each, Traffic.CAST, gpu) for each in moved) * 1e3
            native = run.recipe.half is None or gpu.is_native(run.recipe.half)
            recipe = run.recipe.name if native else f"autocast-{gpu.best_16bit}"
            share = context.step_share(gpu, recipe, milliseconds)
            if share is not None and share >= WORTH:
                return True
        return False

    def _saved(self, context: GraphContext, moved: int) -> dict[str, float]:
        gpus = context.tensor_core_gpus()
        return {gpu.key: traffic_seconds(moved, Traffic.CAST, gpu) * 1e3 for gpu in gpus}


def _bytes_of_detour(context: GraphContext, run: Run, site: Site) -> int:
    """Bytes of the up-cast and its backward, and of the wider results on the way to the next product."""
    dtypes: SiteDtypes = run.dtypes[site.id]
    if op_named(site.op).family not in _CHEAP or not site.outputs:
        return 0
    ups = [index for index, before, after in dtypes.casts if before in HALF and after == "float32"]
    large = [index for index in ups if site.inputs[index].numel == site.outputs[0].numel]
    if not large or not _reaches_product(context, run, site):
        return 0
    # Forward reads 2 bytes and writes 4, backward reads 4 and writes 2; the result is 2 bytes wider, twice each way.
    # What only names its result's dtype, as softmax, reads 16 bits as they are.
    cast = 0 if op_named(site.op).cuda is Autocast.FP32_OUT else 12
    return sum(cast * site.inputs[index].numel for index in large) + 8 * site.outputs[0].numel


def _bytes_around_one(context: GraphContext, run: Run, site: Site) -> int:
    """Bytes of the casts of the user's that lie around a single pointwise op; 0 where there are none, or another."""
    dtypes, casts = run.dtypes[site.id], site.attrs.get("casts") or {}
    if op_named(site.op).family is not Family.POINTWISE or site.params or site.attrs.get("in_place"):
        return 0
    places = [place for place, tensor in enumerate(site.inputs) if tensor.is_floating and tensor.shape]
    before = {_delivered(context, run, site, place) for place in places}
    if len(before) != 1 or not before <= set(HALF) or any(casts.get(place) != "float32" for place in places):
        return 0
    if any(dtypes.given[place] != "float32" for place in places) or site.attrs.get("operand_params"):
        return 0
    after = {
        run.dtypes[consumer.id].given[place]
        for consumer in context.graph.consumers(site.id)
        for place, source in enumerate(consumer.sources)
        if source == site.id
    }
    # Each cast reads and writes 6 bytes and the op 2 more, forward and backward.
    return 16 * (sum(site.inputs[place].numel for place in places) + site.outputs[0].numel) if after == before else 0


def _delivered(context: GraphContext, run: Run, site: Site, place: int) -> str:
    """The dtype of an input as the site before makes it; empty where there is none."""
    source = site.sources[place] if place < len(site.sources) else ""
    return next(iter(run.dtypes[source].outputs), "") if source in context.graph else ""


def _reaches_product(context: GraphContext, run: Run, site: Site, depth: int = 8) -> bool:
    for consumer in context.graph.consumers(site.id):
        family = op_named(consumer.op).family
        if family in _LOWERED and run.dtypes[consumer.id].casts:
            return True
        if family in _CHEAP and depth and _reaches_product(context, run, consumer, depth - 1):
            return True
    return False
