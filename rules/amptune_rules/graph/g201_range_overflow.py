"""G201: a number or a bound that FP16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._overflows import seen_outside
from amptune_rules.graph.causes import fp16_bounds, fp16_data, fp16_numbers


class RangeOverflow(GraphRule):
    """A number over 65504 in an op that runs in FP16, or a result that certainly is over it.

    ## What it does
    Looks at the numbers that the code gives to ops which run in FP16 (literals, constants, buffers), at factors that
    take numbers under 1 out of it, and at results whose lower bound (upper bound for negative ones) already lies
    outside FP16 whatever the inputs are, or with the numbers of the batch alone, and at masks made with a large number
    in FP32 and cast to FP16. Numbers of the batch over 65504 that are cast to FP16 are reported, and, as information,
    products of two tensors that ops and literals bound, where the bounds meet over 65504. With `--calibrate` it reports
    what a step on the batch showed, with `--range` where the bounds first leave FP16.

    ## Why is this bad
    masked_fill raises: "value cannot be converted to type c10::Half without overflow". An addition or where gives
    an infinity, and a row of a softmax that is masked everywhere gives NaN.

    ## Example
    ```python
    scores = (q @ k.transpose(-2, -1)).masked_fill(mask, -1e9)
    ```

    ## Use instead
    ```python
    scores = q @ k.transpose(-2, -1)
    scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    transformers pull request 17306.
    """

    code = "G201"
    name = "range-overflow"
    severity = Severity.ERROR
    by_calls = True
    tells_stops = True
    INVALID = (
        Example("a mask of -1e9 under fp16 autocast", model_file(
            """
            scores = self.fc(x) @ x.T
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, -1e9).softmax(-1)  # <- G201
            """)),
        Example("a large number added in fp16", model_file("return self.fc(x) + 1e6  # <- G201")),
        Example("a factor that overflows", model_file("return torch.tanh(self.fc(x) * 1e6)  # <- G201")),
        Example("a large constant in where", model_file(
            """
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            masked = torch.tensor(-1e9, device=x.device)
            return torch.where(mask, masked, self.fc(x) @ x.T).softmax(-1)  # <- G201
            """)),
        Example("areas of boxes in pixels", model_file(
            """
            boxes = torch.sigmoid(self.fc(x)) * 640
            return boxes[:, :32] * boxes[:, 32:]  # <- G201
            """)),
        Example("pixels compared with prototypes of pixels", model_file(
            "return self.fc((x @ self.bank.t()).softmax(-1))  # <- G201",
            batch="torch.randint(0, 256, (32, 4096)).float()",
            init="self.fc = nn.Linear(64, 64)\nself.bank = nn.Parameter(255 * torch.rand(64, 4096))"),
            options={"evidence": True}),
        Example("counters of the batch that autocast casts", model_file(
            "return self.fc(x)  # <- G201", batch="1000.0 * torch.arange(2048.0).view(32, 64)"),
            options={"evidence": True}),
        Example("the distance to the far end in the dtype of a density", model_file(
            """
            density = self.fc(x).relu()
            far = torch.full((32, 1), 1e10, device=x.device).to(density.dtype)
            steps = torch.cat([torch.ones(32, 63, device=x.device, dtype=density.dtype), far], -1)
            return torch.exp(-density * steps)  # <- G201
            """)),
    )  # fmt: skip
    VALID = (
        Example("the distance to the far end in FP32", model_file(
            """
            density = self.fc(x).relu().float()
            far = torch.full((32, 1), 1e10, device=x.device)
            steps = torch.cat([torch.ones(32, 63, device=x.device), far], -1)
            return torch.exp(-density * steps)
            """)),
        Example("pixels from 0 to 1, and weights of both signs", model_file(
            "return self.fc((x @ self.bank.t()).softmax(-1)) + self.fc(255 * x @ self.mix)",
            batch="torch.rand(32, 4096)",
            init="self.fc = nn.Linear(64, 64)\nself.bank = nn.Parameter(torch.rand(64, 4096))\n"
                 "self.mix = nn.Parameter(torch.randn(4096, 64))"), options={"evidence": True}),
        Example("minus infinity", model_file(
            """
            scores = self.fc(x) @ x.T
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, float("-inf")).softmax(-1)
            """)),
        Example("a mask times the limit of its own dtype", model_file(
            """
            h = self.fc(x)
            mask = (1.0 - (h[:, :1] > 0).to(h.dtype)) * torch.finfo(h.dtype).min
            return (h + mask).softmax(-1)
            """)),
        Example("scores cast up first", model_file(
            """
            scores = (self.fc(x) @ x.T).float()
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return scores.masked_fill(mask, -1e9).softmax(-1)
            """)),
        Example("a large factor of what is small", model_file("return torch.sigmoid(self.fc(x)) * 1e4")),
        Example("areas of boxes in FP32", model_file(
            """
            boxes = torch.sigmoid(self.fc(x)).float() * 640
            return boxes[:, :32] * boxes[:, 32:]
            """)),
        Example("counters of the batch, as logarithms", model_file(
            "return self.fc(torch.log1p(x))", batch="1000.0 * torch.arange(2048.0).view(32, 64)"),
            options={"evidence": True}),
        Example("a constant that fp16 can hold", model_file(
            """
            mask = torch.ones(32, 32, dtype=torch.bool, device=x.device).triu(1)
            return torch.where(mask, torch.tensor(-1e4, device=x.device), self.fc(x) @ x.T).softmax(-1)
            """)),
        Example("the same number in bf16", model_file("return self.fc(x) + 1e6"),
                options={"recipes": ("autocast-bf16",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each op and reason."""
        told: set[str] = set()
        for site, found in fp16_numbers.given_numbers(self, context):
            if found.severity is Severity.ERROR:
                told.add(site.id)  # it raises, so that its values are of no interest
            yield found
        yield from fp16_numbers.narrowed_masks(self, context)
        yield from fp16_numbers.infinite_factors(self, context)
        for site, found in fp16_data.infinite_results(self, context):
            told.add(site.id)
            yield found
        yield from fp16_data.narrowed_batch(self, context)
        yield from fp16_data.narrowed_results(self, context)
        yield from fp16_data.grown_batch(self, context)
        yield from fp16_bounds.certain_results(self, context)
        for site, found in fp16_bounds.results_of_batch(self, context):
            if site.id not in told:
                told.add(site.id)
                yield found
        yield from fp16_data.summed_products(self, context)
        bounded = {site.id: found for site, found in fp16_data.bounded_products(self, context)}
        yield from bounded.values()
        over = seen_outside(context)
        yield from fp16_bounds.seen_results(self, context, told, over)
        yield from fp16_bounds.possible_results(self, context, told | over.keys() | bounded.keys(), first=not over)
