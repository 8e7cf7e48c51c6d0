"""G401: an op without a kernel for the format that it gets."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in, stopped
from amptune.core.op_support import lacks_kernel, tried_with
from amptune.core.ops import Autocast, Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class OpUnsupported(GraphRule):
    """An op that raises on 16-bit inputs, and gets them under a recipe.

    ## What it does
    Looks up each op that runs on 16-bit inputs in the table that is generated from torch's own operator tests, and
    knows the ops that autocast forbids (binary_cross_entropy on CUDA). Linear algebra and Fourier transforms have
    rules of their own.

    ## Why is this bad
    The first step raises: "not implemented for 'Half'".

    ## Example
    ```python
    loss = F.binary_cross_entropy(torch.sigmoid(logits), target)
    ```

    ## Use instead
    ```python
    loss = F.binary_cross_entropy_with_logits(logits, target)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    amptune/data/op_support.json and its generator tests/benchmarks/op_support.py.
    """

    code = "G401"
    name = "op-unsupported"
    severity = Severity.ERROR
    tells_stops = True
    INVALID = (
        Example("binary_cross_entropy under CUDA autocast", model_file(
            "return torch.sigmoid(self.fc(x))",
            loss="F.binary_cross_entropy(output, torch.zeros_like(output))  # <- G401")),
        Example("a histogram of a 16-bit output", model_file(
            "return self.fc(x) * torch.histc(self.fc(x), 64)  # <- G401")),
    )  # fmt: skip
    VALID = (
        Example("with logits", model_file(
            "return self.fc(x)", loss="F.binary_cross_entropy_with_logits(output, torch.zeros_like(output))")),
        Example("binary_cross_entropy under CPU autocast", model_file(
            "return torch.sigmoid(self.fc(x))",
            loss="F.binary_cross_entropy(output, torch.zeros_like(output))"), options={"gpus": ("cpu",)}),
        Example("cdist, which CUDA autocast runs in FP32", model_file("return torch.cdist(self.fc(x), self.fc(x))")),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op."""
        for site in context.graph:
            if op_named(site.op).family in (Family.FFT, Family.LINALG):
                continue
            forbidden = tuple(run for run in context.runs if _is_forbidden(run, site))
            if forbidden:
                yield context.finding(
                    self,
                    site,
                    f"{site.op} raises under CUDA autocast ({recipes_in(forbidden)}): use "
                    f"{site.op}_with_logits on what goes into the sigmoid",
                    stops=stopped(forbidden),
                )
                continue
            runs = tuple(run for run in context.runs if unsupported_dtype(run, site))
            if runs:
                yield context.finding(
                    self,
                    site,
                    f"{site.op} has no {unsupported_dtype(runs[0], site)} kernel on {runs[0].device} "
                    f"({tried_with(runs[0].device, context.torch_version)}) and raises under {recipes_in(runs)}: "
                    "cast its inputs with .float()",
                    stops=stopped(runs),
                )


def _is_forbidden(run: Run, site: Site) -> bool:
    policy = op_named(site.op).cuda
    return policy is Autocast.ERROR and run.device == "cuda" and bool(run.dtypes[site.id].raises)


def unsupported_dtype(run: Run, site: Site) -> str:
    """The 16-bit dtype that the site computes in without having a kernel; empty when it runs."""
    compute = run.dtypes[site.id].compute
    return compute if compute in HALF and lacks_kernel(site.op, compute, run.device) else ""
