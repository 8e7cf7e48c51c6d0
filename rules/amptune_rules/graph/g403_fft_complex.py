"""G403: a Fourier transform or complex view of 16-bit data."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.autocast import COMPLEX_HALF, HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in, stopped
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file

_FILTER = """\
self.fc = nn.Linear(64, 64)
self.w = nn.Parameter(torch.randn(33, 33, dtype=torch.cfloat))"""


class FftComplex(GraphRule):
    """A Fourier transform on 16-bit inputs that has no kernel for them, or a product of the complex halves it gives.

    ## What it does
    Reports transforms in BF16 (there are none), in FP16 on the CPU, and in FP16 on CUDA over lengths that are not
    powers of two. A transform of FP16 gives complex32: matrix products of it, as in Fourier neural operators, are
    reported too.

    ## Why is this bad
    The call raises: "Unsupported dtype BFloat16", or "cuFFT only supports dimensions whose sizes are powers of two
    when computing in half precision". CUDA autocast does not cast transforms, nor complex tensors: a product of
    complex32 and a complex64 weight raises on the dtypes, one of two complex32 because there is no kernel.

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
        Example("complex halves times complex weights", model_file(
            """
            z = torch.fft.rfft(self.fc(x))
            z = torch.einsum("bi,io->bo", z, self.w)  # <- G403
            return torch.fft.irfft(z, n=64)
            """, init=_FILTER), options={"recipes": ("autocast-fp16",)}),
        Example("back from 30 complex halves", model_file(
            "return torch.fft.irfft(torch.fft.rfft(self.fc(x))[:, :30])  # <- G403"),
            options={"recipes": ("autocast-fp16",)}),
    )  # fmt: skip
    VALID = (
        Example("the product of a spectrum and complex weights in fp32", model_file(
            """
            z = torch.fft.rfft(self.fc(x).float())
            return torch.fft.irfft(torch.einsum("bi,io->bo", z, self.w), n=64)
            """, init=_FILTER), options={"recipes": ("autocast-fp16",)}),
        Example("a filter number by number, which promotes", model_file(
            "return torch.fft.irfft(torch.fft.rfft(self.fc(x)) * self.w[0], n=64)", init=_FILTER),
            options={"recipes": ("autocast-fp16",)}),
        Example("cast up first", model_file("return torch.fft.rfft(self.fc(x).float()).abs()")),
        Example("64 elements under fp16 autocast", model_file("return torch.fft.rfft(self.fc(x)).abs()"),
                options={"recipes": ("autocast-fp16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each transform or product."""
        for site in context.graph:
            if op_named(site.op).family is Family.GEMM:
                yield from self._product(context, site)
            if op_named(site.op).family is not Family.FFT or not site.inputs:
                continue
            runs = tuple(run for run in context.runs if _raises(run, site))
            if runs:
                dtypes = " and ".join(dict.fromkeys(run.dtypes[site.id].inputs[0] for run in runs))
                yield context.finding(
                    self,
                    site,
                    f"a Fourier transform of {dtypes} over {_length(site)} elements raises "
                    f"under {recipes_in(runs)}: cast its input with .float()",
                    stops=stopped(runs),
                )

    def _product(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """A matrix product of complex halves, which no kernel computes, alone or beside complex64."""
        runs = tuple(run for run in context.runs if COMPLEX_HALF in _operands(run, site))
        if runs:
            dtypes = " and ".join(sorted(_operands(runs[0], site)))
            yield context.finding(
                self,
                site,
                f"{site.op} of {dtypes} raises under {recipes_in(runs)}: autocast casts no complex tensor, and there "
                "are no matrix products of complex32; give the transform before it .float()",
                stops=stopped(runs),
            )


def _operands(run: Run, site: Site) -> set[str]:
    dtypes = run.dtypes[site.id]
    return {dtype for dtype in (*dtypes.inputs, *dtypes.params) if dtype.startswith("complex")}


def _raises(run: Run, site: Site) -> bool:
    dtype = run.dtypes[site.id].inputs[0]
    if dtype not in (*HALF, COMPLEX_HALF):
        return False
    length = _length(site)
    return dtype == "bfloat16" or run.device == "cpu" or length & (length - 1) != 0


def _length(site: Site) -> int:
    """Elements of the transform: along the last of its axes, those of the real side where one side is real."""
    dims = site.attrs.get("dim", -1)
    axis = dims[-1] if isinstance(dims, list) and dims else dims
    shapes = [tensor.shape for tensor in (site.inputs[0], *site.outputs[:1])]
    sizes = [shape[axis] for shape in shapes if isinstance(axis, int) and -len(shape) <= axis < len(shape)]
    given = site.attrs.get("n")
    return given if isinstance(given, int) else max(sizes, default=1)
