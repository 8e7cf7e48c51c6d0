"""G211: positions or counts that are rounded to 16 bits."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.formats import Format
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file


class IntegersInLowPrecision(GraphRule):
    """Integers (positions, timesteps, counts) that enter a 16-bit op which cannot tell neighbours apart.

    ## What it does
    Reports ops that run in 16 bits on a tensor that the user's code made from integers of its own (arange, randint)
    with more of them than the format counts exactly: 256 in BF16, 2048 in FP16. Autocast does this to a matmul with
    positions. Integers of the batch, up to the largest one in it, are reported on their way to a sine or cosine alone.

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
    )  # fmt: skip
    VALID = (
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
                    f"{number_format.largest_exact_integer + 1}: compute this in float32 with autocast off",
                    count=length,
                    format=str(number_format),
                )
                break

    def _rounded(self, context: GraphContext, site: Site) -> Iterable[tuple[int, Format, tuple[Run, ...]]]:
        made = {**(site.attrs.get("integers") or {}), **_given(context, site)}
        for index, length in made.items():
            for number_format in (Format.BF16, Format.FP16):
                name = number_format.torch_name
                runs = tuple(run for run in context.runs if run.dtypes[site.id].inputs[index] == name)
                if runs and length > number_format.largest_exact_integer:
                    yield length, number_format, runs


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


def _is_turned(context: GraphContext, site: Site, steps: int = _STEPS) -> bool:
    if site.op in _TURNS:
        return True
    if not steps or site.op not in _ON_THE_WAY:
        return False
    return any(_is_turned(context, after, steps - 1) for after in context.graph.consumers(site.id))
