"""G501: a cast to FP8 of what nothing scales or bounds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run
from amptune.core.operands import input_of
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import chain


class Fp8Range(GraphRule):
    """A cast to FP8 in the model's own code, of a tensor that is neither scaled nor clamped.

    ## What it does
    Follows what is cast to float8_e4m3fn (largest number 448) or float8_e5m2 (57344): a tensor that was divided or
    multiplied by another tensor counts as scaled, and one that ops or literals bound by the format's largest number as
    safe. With `--calibrate` what a step on the batch showed decides.

    ## Why is this bad
    Without a scale, activations over 448 become NaN or saturate, and those under 0.001 vanish: E4M3 has 18 powers of
    two in all. The FP8 recipes of torchao and TransformerEngine divide by the largest value first.

    ## Example
    ```python
    x8 = x.to(torch.float8_e4m3fn)
    ```

    ## Use instead
    ```python
    scale = 448 / x.abs().amax().clamp(min=1e-12)
    x8 = (x * scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    OCP 8-bit floating point specification 1.0; TransformerEngine user guide.
    """

    code = "G501"
    name = "fp8-range"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("a cast without a scale", model_file(
            """
            h = self.fc(x).to(torch.float8_e4m3fn).float()
            return h * 2  # <- G501
            """)),
        Example("a factor that is a literal", model_file(
            """
            h = (self.fc(x) * 16).to(torch.float8_e5m2).float()
            return h + 1  # <- G501
            """)),
    )  # fmt: skip
    VALID = (
        Example("scaled by its largest value", model_file(
            """
            h = self.fc(x)
            scale = 448 / h.abs().amax().clamp(min=1e-4)
            return (h * scale).to(torch.float8_e4m3fn).float() / scale
            """)),
        Example("clamped", model_file(
            """
            h = self.fc(x).clamp(-448, 448).to(torch.float8_e4m3fn).float()
            return h * 2
            """)),
        Example("bounded by an op", model_file(
            """
            h = torch.tanh(self.fc(x)).to(torch.float8_e4m3fn).float()
            return h * 2
            """)),
        Example("another format", model_file("return self.fc(x).to(torch.bfloat16).float() * 2")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op that reads such a tensor."""
        if not context.runs:
            return
        run = context.runs[0]
        for site in context.graph:
            for position, number_format in _narrowed(site):
                source = run.ranges.sources(site)[position]
                if run.ranges.arriving(site, position).magnitude <= number_format.max or _is_scaled(run, source):
                    continue
                observed = context.evidence.observed
                seen = observed.forward.get(source) if observed else None
                if seen is not None and not seen.overflows(number_format):
                    continue
                shown = (
                    f"the step on the batch showed {seen.magnitude:.4g}" if seen else "nothing in the graph bounds it"
                )
                yield context.finding(
                    self,
                    site,
                    f"what this {site.op} reads was cast to {number_format} (largest number {number_format.max:g}) "
                    f"without a scale, and {shown}: divide by its largest value first",
                    limit=number_format.max,
                    chain=chain(context, site),
                )


def _narrowed(site: Site) -> Iterator[tuple[int, Format]]:
    for position, dtype in (site.attrs.get("narrowed") or {}).items():
        yield position, Format.parse(dtype)


def _is_scaled(run: Run, source: str) -> bool:
    """Whether a product or quotient of two tensors made it."""
    if source not in run.ranges.graph:
        return False
    made = run.ranges.graph[source]
    return made.op in ("mul", "div") and all(input_of(made, place) is not None for place in (0, 1))
