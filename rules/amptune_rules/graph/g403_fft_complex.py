"""G403: a Fourier transform or complex view of 16-bit data."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in, stopped
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class FftComplex(GraphRule):
    """A Fourier transform on 16-bit inputs that has no kernel for them.

    ## What it does
    Reports transforms in BF16 (there are none), in FP16 on the CPU, and in FP16 on CUDA over lengths that are not
    powers of two.

    ## Why is this bad
    The call raises: "Unsupported dtype BFloat16", or "cuFFT only supports dimensions whose sizes are powers of two
    when computing in half precision". CUDA autocast does not cast transforms.

    ## Example
    ```python
    spectrum = torch.fft.rfft(self.fc(x))
    ```

    ## Use instead
    ```python
    spectrum = torch.fft.rfft(self.fc(x).float())
    ```

    ## Fix safety
    No automatic fix.

    ## References
    torch.fft documentation.
    """

    code = "G403"
    name = "fft-complex"
    severity = Severity.ERROR
    tells_stops = True
    INVALID = (
        Example("a transform under bf16 autocast", model_file(
            "return torch.fft.rfft(self.fc(x)).abs()  # <- G403"), options={"recipes": ("autocast-bf16",)}),
        Example("60 elements under fp16 autocast", model_file(
            "return torch.fft.rfft(self.fc(x)).abs()  # <- G403", init="self.fc = nn.Linear(60, 60)",
            batch="torch.randn(8, 60)"), options={"recipes": ("autocast-fp16",)}),
    )  # fmt: skip
    VALID = (
        Example("cast up first", model_file("return torch.fft.rfft(self.fc(x).float()).abs()")),
        Example("64 elements under fp16 autocast", model_file("return torch.fft.rfft(self.fc(x)).abs()"),
                options={"recipes": ("autocast-fp16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each transform."""
        for site in context.graph:
            if op_named(site.op).family is not Family.FFT or not site.inputs:
                continue
            runs = tuple(run for run in context.runs if _raises(run, site))
            if runs:
                dtypes = " and ".join(dict.fromkeys(run.dtypes[site.id].inputs[0] for run in runs))
                yield context.finding(
                    self,
                    site,
                    f"a Fourier transform of {dtypes} over {site.inputs[0].shape[-1]} elements raises "
                    "under "
                    f"{recipes_in(runs)}: cast its input with .float()",
                    stops=stopped(runs),
                )


def _raises(run: Run, site: Site) -> bool:
    dtype = run.dtypes[site.id].inputs[0]
    if dtype not in HALF:
        return False
    length = site.inputs[0].shape[-1] if site.inputs[0].shape else 1
    return dtype == "bfloat16" or run.device == "cpu" or length & (length - 1) != 0
