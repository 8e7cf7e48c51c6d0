"""G403: a Fourier transform or complex view of 16-bit data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from amptune.core.autocast import COMPLEX_HALF, HALF
from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in, stopped
from amptune.core.ops import Family, op_named
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import called

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
        Example("a spectrogram without a window", model_file(
            "return torch.stft(self.fc(x), 16, return_complex=True).abs()  # <- G403"),
            options={"recipes": ("autocast-bf16",)}),
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
        Example("a spectrogram whose window is fp32", model_file(
            """
            window = torch.hann_window(16, device=x.device)
            return torch.stft(self.fc(x), 16, window=window, return_complex=True).abs()
            """)),
        Example("64 elements under fp16 autocast", model_file("return torch.fft.rfft(self.fc(x)).abs()"),
                options={"recipes": ("autocast-fp16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each transform or product; none for what reads the result of another one that raises."""
        behind: dict[str, set[str]] = {run.label: set() for run in context.runs}
        for site in context.graph:
            if op_named(site.op).family not in (Family.GEMM, Family.FFT) or not site.inputs:
                _pass_on(context, site, (), behind)
                continue
            raising = tuple(run for run in context.runs if _raises(run, site))
            runs = tuple(run for run in raising if not behind[run.label].intersection(site.sources))
            _pass_on(context, site, raising, behind)
            if runs and op_named(site.op).family is Family.GEMM:
                yield self._product(context, site, runs)
            elif runs:
                dtypes = list(dict.fromkeys(run.dtypes[site.id].inputs[0] for run in runs))
                sizes = f" over {_size(site)} elements" if dtypes == ["float16"] else ""  # BF16 raises over any
                yield context.finding(
                    self,
                    site,
                    f"a Fourier transform of {' and '.join(dtypes)}{sizes} raises under {recipes_in(runs)}: cast its "
                    "input with .float()",
                    stops=stopped(runs),
                )

    def _product(self, context: GraphContext, site: Site, runs: tuple[Run, ...]) -> Finding:
        """A matrix product of complex halves, which no kernel computes, alone or beside complex64."""
        dtypes = " and ".join(sorted(_operands(runs[0], site)))
        return context.finding(
            self,
            site,
            f"{site.op} of {dtypes} raises under {recipes_in(runs)}: autocast casts no complex tensor, and there "
            "are no matrix products of complex32; give the transform before it .float()",
            stops=stopped(runs),
        )


def _operands(run: Run, site: Site) -> set[str]:
    dtypes = run.dtypes[site.id]
    return {dtype for dtype in (*dtypes.inputs, *dtypes.params) if dtype.startswith("complex")}


def _pass_on(context: GraphContext, site: Site, raising: tuple[Run, ...], behind: dict[str, set[str]]) -> None:
    """Note for each run what is worked out from a complex result that there is none of: a mended call gives another."""
    for run in context.runs:
        complexes = any(dtype.startswith("complex") for dtype in run.dtypes[site.id].inputs)
        if run in raising or (complexes and behind[run.label].intersection(site.sources)):
            behind[run.label].add(site.id)


def _raises(run: Run, site: Site) -> bool:
    if op_named(site.op).family is Family.GEMM:
        return COMPLEX_HALF in _operands(run, site)
    dtype, *others = run.dtypes[site.id].inputs
    if dtype not in (*HALF, COMPLEX_HALF) or (site.op == "stft" and "float32" in others):
        return False  # a window in FP32 multiplies the frames, and raises them, before they are transformed
    return dtype == "bfloat16" or run.device == "cpu" or any(length & (length - 1) for length in _lengths(site))


def _size(site: Site) -> str:
    return " x ".join(map(str, _lengths(site)))


def _lengths(site: Site) -> list[int]:
    """Elements of the transform along each of its axes, those of the real side where one side is real."""
    if isinstance(frame := site.attrs.get("n_fft"), int):
        return [frame]
    shapes = [tensor.shape for tensor in (site.inputs[0], *site.outputs[:1])]
    sizes = []
    for axis in _axes(site):
        along = [shape[axis] for shape in shapes if isinstance(axis, int) and -len(shape) <= axis < len(shape)]
        sizes.append(max(along, default=1))
    given = site.attrs.get("n")
    return [given] if isinstance(given, int) else sizes


def _axes(site: Site) -> list[Any]:
    dims = site.attrs.get("dim")
    if dims is not None:
        return list(dims) if isinstance(dims, list | tuple) else [dims]
    name = called(site).removesuffix("_")
    if name.endswith("fftn"):
        return list(range(-len(site.inputs[0].shape), 0))
    return [-2, -1] if name.endswith("fft2") else [-1]
