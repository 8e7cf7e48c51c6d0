"""G220: a small term that the format rounds away beside what it is added to."""

from __future__ import annotations

from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph_context import GraphContext
from amptune.core.rule import Example, GraphRule
from amptune_rules.graph._examples import model_file
from amptune_rules.graph.causes.counts import crowded_counts, stopped_counts, stopped_sums
from amptune_rules.graph.causes.jitters import lost_jitters
from amptune_rules.graph.causes.running_averages import deaf_averages


class LostTerm(GraphRule):
    """A running average in 16 bits whose steps are rounded away, or a jitter that is lost on its matrix.

    ## What it does
    Finds running averages of buffers and parameters (`m * a + (1 - m) * x`, `lerp_`, `a += (1 - m) * (x - a)`) that are
    kept in 16 bits, with a step too short for them; constants that a loop adds to a number beside which they are
    rounded away, as times; counts in 16 bits, in buffers and term by term in one forward; and constants that are added
    to a matrix before a decomposition, inverse or solve and are under half an ulp of 1.

    ## Why is this bad
    A sum is rounded to the format's digits: BF16 keeps eight bits of them, so that a step of a thousandth changes
    nothing, and the average stays where it is, as a count does at 256 (2048 in FP16). In FP32 a jitter of 1e-8 is gone
    beside a diagonal of 1: the matrix is as singular as it was, and Cholesky raises.

    ## Example
    ```python
    self.usage = 0.999 * self.usage + 0.001 * counts.bfloat16()
    ```

    ## Use instead
    ```python
    self.usage = 0.999 * self.usage.float() + 0.001 * counts  # a buffer in FP32
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Mixed Precision Training (ICLR 2018), section on FP32 copies of weights; torch.finfo.
    """

    code = "G220"
    name = "lost-term"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("counts of codes in BF16", model_file(
            """
            with torch.no_grad():
                self.usage = 0.99 * self.usage + 0.01 * x.mean(0).to(self.usage.dtype)  # <- G220
            return self.fc(x) / self.usage.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('usage', torch.ones(64, dtype=torch.bfloat16))")),
        Example("a step towards what is new", model_file(
            """
            with torch.no_grad():
                self.mean += 0.001 * (x.mean(0).half() - self.mean)  # <- G220
            return self.fc(x) - self.mean
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('mean', torch.zeros(64, dtype=torch.float16))")),
        Example("the weights of a target network", model_file(
            """
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.fast.parameters()):
                    slow.data.mul_(0.996).add_(fast.data, alpha=1 - 0.996)  # <- G220
            return self.fast(x) - self.slow(x).detach()
            """, init="self.fast, self.slow = nn.Linear(64, 64), nn.Linear(64, 64).requires_grad_(False)",
            cast=".bfloat16()", batch="torch.randn(32, 64).bfloat16()")),
        Example("a time that stands still", model_file(
            """
            t = torch.ones((), dtype=torch.bfloat16, device=x.device)
            for _ in range(4):
                x = x + 0.002 * self.fc(x) * t.float()
                t = t + 0.002  # <- G220
            return x
            """)),
        Example("how often each item was seen", model_file(
            """
            self.seen.index_add_(0, x.argmax(1), torch.ones(32, dtype=torch.float16, device=x.device))  # <- G220
            return self.fc(x) / self.seen.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('seen', torch.ones(64, dtype=torch.float16))")),
        Example("steps so far", model_file(
            """
            self.steps += 1  # <- G220
            return self.fc(x) / self.steps.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('steps', torch.zeros((), dtype=torch.bfloat16))")),
        Example("steps so far, copied into their buffer", model_file(
            """
            with torch.no_grad():
                self.steps.copy_(self.steps + 1)  # <- G220
            return self.fc(x) / self.steps.float()
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('steps', torch.zeros((), dtype=torch.float16))")),
        Example("counts of what is positive", model_file(
            """
            self.alive.add_((x > 0).sum(0).to(self.alive.dtype))  # <- G220
            return self.fc(x) * (self.alive > 0)
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('alive', torch.zeros(64, dtype=torch.bfloat16))")),
        Example("a jitter of 1e-9", model_file(
            """
            h = self.fc(x).float()
            with torch.autocast(x.device.type, enabled=False):
                k = torch.exp(-torch.cdist(h, h).square())
                chol = torch.linalg.cholesky(k + 1e-9 * torch.eye(32, device=x.device))  # <- G220
            return chol.diagonal().log()
            """)),
    )  # fmt: skip
    VALID = (
        Example("counts of codes in FP32", model_file(
            """
            with torch.no_grad():
                self.usage = 0.99 * self.usage + 0.01 * x.mean(0)
            return self.fc(x) / self.usage
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('usage', torch.ones(64))")),
        Example("steps so far in integers, and in FP32", model_file(
            """
            self.steps += 1
            self.seen.index_add_(0, x.argmax(1), torch.ones(32, device=x.device))
            return self.fc(x) / self.steps / self.seen
            """, init="self.fc = nn.Linear(64, 64)\nself.register_buffer('seen', torch.ones(64))\n"
                      "self.register_buffer('steps', torch.zeros((), dtype=torch.long))")),
        Example("a count with one added", model_file(
            "return self.fc(x) / (self.seen + 1).float()", init="self.fc = nn.Linear(64, 64)\n"
            "self.register_buffer('seen', torch.ones(64, dtype=torch.float16))")),
        Example("counts of one batch", model_file(
            """
            seen = torch.zeros(64, dtype=torch.float16, device=x.device)
            seen.index_add_(0, x.argmax(1), torch.ones(32, dtype=torch.float16, device=x.device))
            return self.fc(x) / (1 + seen.float())
            """)),
        Example("long steps", model_file(
            """
            with torch.no_grad():
                self.mean.lerp_(x.mean(0).bfloat16(), 0.1)
            return self.fc(x) - self.mean
            """, init="self.fc = nn.Linear(64, 64)\n"
                      "self.register_buffer('mean', torch.zeros(64, dtype=torch.bfloat16))")),
        Example("a mixture within one step", model_file("return 0.999 * self.fc(x) + 0.001 * self.fc(x).tanh()")),
        Example("a time that goes on", model_file(
            """
            t = torch.zeros((), dtype=torch.bfloat16, device=x.device)
            for _ in range(4):
                x = x + 0.25 * self.fc(x) * t.float()
                t = t + 0.25
            return x
            """)),
        Example("a jitter that FP32 can hold", model_file(
            """
            h = self.fc(x).float()
            with torch.autocast(x.device.type, enabled=False):
                k = torch.exp(-torch.cdist(h, h).square())
                chol = torch.linalg.cholesky(k + 1e-5 * torch.eye(32, device=x.device))
            return chol.diagonal().log()
            """)),
        Example("a small jitter of a small matrix", model_file(
            """
            h = self.fc(x).float()
            with torch.autocast(x.device.type, enabled=False):
                k = 1e-3 * torch.exp(-torch.cdist(h, h).square())
                chol = torch.linalg.cholesky(k + 1e-9 * torch.eye(32, device=x.device))
            return chol.diagonal().log()
            """)),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each average, count and jitter."""
        if not context.runs:
            return
        if context.train:
            yield from deaf_averages(self, context)
            yield from stopped_counts(self, context)
        yield from crowded_counts(self, context)
        yield from lost_jitters(self, context)
        yield from stopped_sums(self, context)
