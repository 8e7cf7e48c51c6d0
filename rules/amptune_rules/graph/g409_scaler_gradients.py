"""G409: gradients that the loss scaler of FP16 autocast does not take."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Param, Site
from amptune.core.graph_context import GraphContext, stopped
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

_REASONS = {
    "bfloat16": "unscale_ has no kernel for BFloat16 on CUDA",
    "float16": "unscale_ refuses FP16 gradients, and step calls it, but for fused optimizers",
}
"""Dtype of a trained parameter -> what GradScaler does with its gradient."""


class ScalerGradients(GraphRule):
    """Trained parameters in 16 bits, whose gradients torch.amp.GradScaler does not take.

    ## What it does
    Looks at the dtypes of the parameters that have a gradient, where FP16 autocast is asked about on a CUDA GPU.

    ## Why is this bad
    FP16 autocast needs a GradScaler, and that raises in the first step: "_amp_foreach_non_finite_check_and_unscale_cuda
    not implemented for 'BFloat16'", or "Attempting to unscale FP16 gradients".

    ## Example
    ```python
    model = Model().to(torch.bfloat16)      # and torch.autocast("cuda", torch.float16) with a GradScaler
    ```

    ## Use instead
    ```python
    model = Model()                         # autocast casts what it computes with
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.amp.GradScaler; pytorch issue 127176.
    """

    code = "G409"
    name = "scaler-gradients"
    severity = Severity.ERROR
    tells_stops = True
    INVALID = (
        Example("a layer in bf16", model_file(
            "return self.fc(x)  # <- G409", init="self.fc = nn.Linear(64, 64, dtype=torch.bfloat16)",
            batch="torch.randn(32, 64, dtype=torch.bfloat16)"), options={"gpus": ("h100",)}),
        Example("a layer in fp16", model_file(
            "return self.fc(x)  # <- G409", init="self.fc = nn.Linear(64, 64, dtype=torch.float16)",
            batch="torch.randn(32, 64, dtype=torch.float16)"), options={"gpus": ("h100",)}),
    )  # fmt: skip
    VALID = (
        Example("a layer in fp32", model_file("return self.fc(x)"), options={"gpus": ("h100",)}),
        Example("a frozen layer in bf16", model_file(
            "return self.head(self.fc(x).float())",
            init="self.fc = nn.Linear(64, 64, dtype=torch.bfloat16).requires_grad_(False)\n"
                 "self.head = nn.Linear(64, 64)",
            batch="torch.randn(32, 64, dtype=torch.bfloat16)"), options={"gpus": ("h100",)}),
        Example("a CPU, whose kernel takes bf16", model_file(
            "return self.fc(x)", init="self.fc = nn.Linear(64, 64, dtype=torch.bfloat16)",
            batch="torch.randn(32, 64, dtype=torch.bfloat16)"), options={"gpus": ("cpu",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each dtype, at the first layer that has it."""
        runs = tuple(
            run for run in context.runs if run.device == "cuda" and run.recipe.autocast is Format.FP16
        )  # fmt: skip
        if not context.train or not runs:
            return
        for dtype, reason in _REASONS.items():
            sites = [site for site in context.graph if dtype in _trained(site)]
            if not sites:
                continue
            names = {param.key or param.name for site in sites for param in _trained(site).get(dtype, ())}
            raises = dtype == "bfloat16"
            severity = Severity.WARNING if not raises else Severity.ERROR if context.recipes_named else Severity.INFO
            yield context.finding(
                self,
                sites[0],
                f"{len(names)} trained parameter{'s' * (len(names) > 1)} in {dtype}: the GradScaler that autocast-fp16 "
                f"needs raises, as {reason}; keep them in float32, or use autocast-bf16 without a scaler",
                severity=severity,
                parameters=len(names),
                dtype=dtype,
                **({"stops": stopped(runs)} if raises else {}),
            )


def _trained(site: Site) -> dict[str, list[Param]]:
    """The parameters of a site that have a gradient, by their dtype."""
    found: dict[str, list[Param]] = {}
    for param in site.params:
        if param.meta.requires_grad:
            found.setdefault(param.meta.dtype, []).append(param)
    return found
