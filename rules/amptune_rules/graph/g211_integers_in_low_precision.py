"""G211: positions or counts that are rounded to 16 bits."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph.causes.rounded_angles import rounded_angles, rounded_integers
from amptune_rules.graph.causes.rounded_counts import rounded_counts, rounded_differences, rounded_rows
from amptune_rules.graph.causes.rounded_grids import returned_integers, rounded_grids
from amptune_rules.graph.causes.rounded_levels import rounded_levels


class IntegersInLowPrecision(GraphRule):
    """Integers (positions, timesteps, counts) that enter a 16-bit op which cannot tell neighbours apart.

    ## What it does
    Reports ops that run in 16 bits on a tensor that the user's code made from integers of its own (arange, randint)
    with more of them than the format counts exactly: 256 in BF16, 2048 in FP16. Autocast does this to a matmul with
    positions. Integers of the batch, up to the largest one in it, are reported on their way to a sine or cosine alone,
    and so are its other numbers, as times, where the rounding moves the angle by a quarter of a radian and more. So is
    a sum of a mask that counts further than its format does, a number computed in 16 bits that is cast to an
    integer and picks a row of a table with more of them, integers of the batch that are cast to 16 bits and back, and
    an evenly spaced grid of coordinates of which 16 bits leave fewer than nine places in ten, and a rounding to more
    whole numbers than the format has.

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
        Example("times in the dtype of the activations", model_file(
            """
            h = self.fc(x)
            angles = t.to(h.dtype)[:, None] * self.freq[None]  # <- G211
            return h + angles.sin()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), torch.rand(32) * 5000)"), options={"evidence": True}),
        Example("dates that the code casts to BF16", model_file(
            """
            angles = t.to(torch.bfloat16)[:, None] * self.freq.to(torch.bfloat16)  # <- G211
            return self.fc(x) + angles.sin().to(x.dtype)
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), 58000 + torch.rand(32) * 400)"), options={"evidence": True}),
        Example("a count of tokens in the dtype of the losses", model_file(
            """
            h = self.fc(x)
            keep = (x[:, :8] > 0).to(h.dtype)
            return (h[:, :8] * keep).sum(0) / keep.sum()  # <- G211
            """, cast=".bfloat16()", batch="torch.randn(4096, 64).bfloat16()")),
        Example("times between stamps in FP16", model_file(
            "return self.fc((t.half()[:, 1:] - t.half()[:, :-1]).float() / 60)  # <- G211", takes="t",
            batch="torch.arange(2080.0).view(32, 65) * 7"), options={"evidence": True}),
    )  # fmt: skip
    VALID = (
        Example("times between stamps, subtracted in FP32", model_file(
            "return self.fc((t[:, 1:] - t[:, :-1]).half().float() / 60)", takes="t",
            batch="torch.arange(2080.0).view(32, 65) * 7"), options={"evidence": True}),
        Example("differences of coordinates in FP16", model_file(
            "return self.fc((t.half()[:, 1:] - t.half()[:, :-1]).float() / 60)", takes="t",
            batch="torch.rand(32, 65)"), options={"evidence": True}),
        Example("times that 16 bits tell apart", model_file(
            """
            h = self.fc(x)
            angles = t.to(h.dtype)[:, None] * self.freq[None]
            return h + angles.sin()
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('freq', torch.rand(64))",
            takes="x, t", batch="(torch.randn(32, 64), torch.rand(32))"), options={"evidence": True}),
        Example("a count of tokens in FP32", model_file(
            """
            h = self.fc(x)
            keep = (x[:, :8] > 0).float()
            return (h[:, :8] * keep).sum(0) / keep.sum()
            """, cast=".bfloat16()", batch="torch.randn(4096, 64).bfloat16()")),
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
            if (found := rounded_integers(self, context, site)) is not None:
                yield found
                continue
            for cause in (rounded_angles, rounded_differences, rounded_counts, rounded_rows, rounded_levels):
                if (found := cause(self, context, site)) is not None:
                    yield found
        yield from rounded_grids(self, context)
        yield from returned_integers(self, context)
