"""G306: an FP32 buffer or parameter that promotes 16-bit activations."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import HALF, sources_of
from amptune.core.finding import Finding, Severity
from amptune.core.graph import INPUT, Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.ops import Family, op_named
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
    costs a noticeable part of the predicted step.

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
        Example("cast first", model_file(
            "h = self.up(x)\nreturn self.down(F.silu(h * self.scale.to(torch.bfloat16)))",
            init="self.up = nn.Linear(64, 1024)\nself.down = nn.Linear(1024, 64)\n"
            "self.register_buffer('scale', torch.ones(1024))", batch="torch.randn(65536, 64)"),
            options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each such op, under the first recipe in which it happens."""
        for site in context.graph:
            for run in context.runs:
                if run.device == "cuda" and (moved := _extra_bytes(context, run, site)):
                    own = run.recipe.half is None
                    saved = {
                        g.key: traffic_seconds(moved, Traffic.POINTWISE, g) * 1e3 for g in context.tensor_core_gpus()
                    }
                    if own or self._is_worth(context, run, site, saved):
                        yield context.finding(
                            self,
                            site,
                            f"a float32 tensor promotes this {site.op} of 16-bit activations to float32 "
                            f"({'in the model as written' if own else run.label}): cast it to the activations' dtype",
                            severity=Severity.WARNING if own else Severity.INFO,
                            bytes=moved,
                            saves_ms=saved,
                        )
                        break

    def _is_worth(self, context: GraphContext, run: Run, site: Site, saved: dict[str, float]) -> bool:
        shares = [
            context.step_share(gpu, run.recipe.name, saved[gpu.key] * context.repeats(site))
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
    return 8 * site.outputs[0].numel if large and (stored or wide_params) and not made else 0


def _is_made(context: GraphContext, source: str) -> bool:
    """Whether a tensor has activations in it: not what is stored, nor worked out from parameters alone."""
    return source in context.graph and not reads_weights_alone(context, context.graph[source])
