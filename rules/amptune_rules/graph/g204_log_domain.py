"""G204: a logarithm of what can be zero or less."""

from __future__ import annotations

import math
from collections.abc import Iterable

from amptune.core.finding import Finding, Severity
from amptune.core.graph import Site
from amptune.core.graph_context import GraphContext, Run, recipes_in
from amptune.core.intervals import Range
from amptune.core.operands import input_of
from amptune.core.rule import Example, GraphRule
from amptune.core.segments import is_positive_sum
from amptune_rules.graph._examples import model_file
from amptune_rules.graph._numeric import (
    chain,
    ends_as_integers,
    eps_before,
    floating_sites,
    has_zeros_of_batch,
    is_signed,
    lost_eps,
    of_batch,
    reads_weights_alone,
)
from amptune_rules.graph._spectra import spectrum_behind
from amptune_rules.graph.causes.batch_zeros import closing_factor, zeros_of_batch
from amptune_rules.graph.causes.determinants import determinant_behind

_INSTEAD = {
    "softmax": "; use log_softmax",
    "sigmoid": "; use logsigmoid, or a loss with_logits",
    "prod": "; use the sum of the logarithms",
    "cumprod": "; use the cumulative sum of the logarithms",
    "sum": "; use logsumexp where it is a sum of exponentials",
}
_MEASURES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
"""Losses, which are zero where all of their terms are: the logarithm of one is a measure such as PSNR."""

_STEPS = 6

_REPLACES = frozenset({"where", "masked_fill", "nan_to_num", "clamp", "maximum", "masked_select", "index"})
"""Ops right behind a logarithm that may take out what is not finite."""


class LogDomain(GraphRule):
    """A logarithm whose input can be zero, below zero, or is protected by an eps that the format rounds to zero.

    ## What it does
    Follows the ops and literals that lead to each log, log2, log10 and log1p, and rounds them as each recipe would.
    Of a tensor of the batch it takes the numbers that `make_batch` gives.
    xlogy is reported where its second operand can be zero and has a gradient, and the logarithm of a determinant of
    16 x 16 and more.

    ## Why is this bad
    A softmax or sigmoid reaches exactly 0 from logits about 104 apart in FP32 and 17 in FP16; its logarithm is -inf
    and the gradient NaN. An eps under 3e-8 is zero in FP16, so `log(p + 1e-8)` is `log(p)` there.

    ## Example
    ```python
    loss = -torch.log(torch.softmax(logits, -1))
    ```

    ## Use instead
    ```python
    loss = -torch.log_softmax(logits, -1)
    ```

    ## Fix safety
    No automatic fix.

    ## References
    Exposing Numerical Bugs in Deep Learning with Gradient Back-propagation (ESEC/FSE 2021): 12 of 22 PyTorch defects.
    """

    code = "G204"
    name = "log-domain"
    severity = Severity.WARNING
    by_calls = True
    INVALID = (
        Example("log of softmax", model_file("return torch.log(torch.softmax(self.fc(x), -1))  # <- G204")),
        Example("log of one minus sigmoid", model_file("return torch.log(1 - torch.sigmoid(self.fc(x)))  # <- G204")),
        Example("an eps that FP16 cannot hold", model_file(
            "return torch.log(torch.relu(self.fc(x)) + 1e-8)  # <- G204")),
        Example("counts of the batch, some of which are zero", model_file(
            "return self.fc(torch.log(x))  # <- G204", batch="torch.arange(2048.0).view(32, 64) % 7"),
            options={"evidence": True}),
        Example("the other half of a logit of pixels, some of which are one", model_file(
            "return self.fc(torch.log1p(-x))  # <- G204", batch="torch.arange(2048.0).view(32, 64) % 5 / 4"),
            options={"evidence": True}),
    )  # fmt: skip
    VALID = (
        Example("log_softmax", model_file("return torch.log_softmax(self.fc(x), -1)")),
        Example("an eps that FP16 can hold", model_file("return torch.log(torch.relu(self.fc(x)) + 1e-4)")),
        Example("eps added in FP32", model_file("return torch.log(torch.softmax(self.fc(x), -1) + 1e-8)")),
        Example("1 + exp of a bounded input", model_file(
            "return torch.log(1 + torch.exp(torch.tanh(self.fc(x))))")),
        Example("counts of the batch, from one on", model_file(
            "return self.fc(torch.log(x))", batch="1 + torch.arange(2048.0).view(32, 64) % 7"),
            options={"evidence": True}),
        Example("counts of the batch, whose zeros are left out", model_file(
            "return self.fc(torch.where(x > 0, torch.log(x), -1.0))", batch="torch.arange(2048.0).view(32, 64) % 7"),
            options={"evidence": True}),
        Example("the slope of a spline between knots", model_file(
            """
            t, d = torch.sigmoid(self.fc(x)), 1e-3 + F.softplus(self.fc(x * x))
            return torch.log(d[:, :63] * t[:, 1:].square() + d[:, 1:] * (1 - t[:, 1:]).square())
            """), options={"recipes": ("fp32",)}),
    )  # fmt: skip

    def check(self, context: GraphContext) -> Iterable[Finding]:
        """One finding for each logarithm, for the plainest reason."""
        for site in floating_sites(context, "log", "log2", "log10", "log1p"):
            if told := determinant_behind(context, site):
                yield context.finding(self, site, told[0], severity=told[1], chain=chain(context, site))
                continue
            if reads_weights_alone(context, site):
                yield from self._of_parameter(context, site)
                continue
            if ends_as_integers(context, site):
                continue
            bad = tuple(
                run
                for run in context.runs
                if _reaches_end(site, run.ranges.operand(site, 0))
                and not _is_share_of_more(run, site)
                and not _is_off_end_in_batch(context, site)
            )
            eps = eps_before(context.runs[0], site) if context.runs else None
            if bad and eps is not None:
                yield context.finding(
                    self,
                    site,
                    f"the eps of {eps:g} that protects {site.op} rounds to zero under "
                    f"{recipes_in(bad)}: {site.op}(0) is -inf",
                    eps=eps,
                )
            elif bad:
                yield self._unprotected(context, site, bad)
            elif context.runs and is_signed(context.runs[0], site):
                yield context.finding(
                    self,
                    site,
                    f"{site.op} of the output of a layer, which has both signs: NaN below {_end(site):g}; clamp it, or "
                    "use softplus and an eps before it",
                    chain=chain(context, site),
                )
            elif context.runs:
                yield from self._of_batch(context, site)
                yield from self._of_zeros(context, site)
                yield from self._lost(context, site)
                yield from self._of_spectrum(context, site)
        yield from self._of_products(context)
        yield from self._of_nothing(context)

    def _of_zeros(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """What weights have a part in, and is zero where the batch is: its gradient comes back, whatever is chosen."""
        place = input_of(site, 0)
        is_trained = context.train and place is not None and site.inputs[place].requires_grad
        if site.op == "log1p" or not is_trained or site.id not in context.weighted:
            return
        if factor := closing_factor(context.runs[0], site, 0):
            text = f"{site.op} of a product with the result of {factor}, which is zero for much of what it reads: "
            yield context.finding(self, site, f"{text}-inf, and its gradient NaN", chain=chain(context, site))
        elif has_zeros_of_batch(context, site, 0) or site.attrs.get("zeros_read", 0) > 0:
            yield context.finding(
                self,
                site,
                f"{site.op} of what is zero wherever a tensor of make_batch() is: {site.op}(0) is -inf, and 0 * inf in "
                "its gradient NaN, also where a mask or where() leaves it out afterwards; put a number in the place of "
                "zeros before the logarithm",
                chain=chain(context, site),
            )

    def _of_nothing(self, context: GraphContext) -> Iterable[Finding]:
        """Sums of exponentials of -inf alone, as at places that no path of a lattice leads to."""
        for site in floating_sites(context, "logaddexp"):
            is_trained = context.train and any(tensor.requires_grad for tensor in site.inputs)
            if is_trained and all(_is_nowhere(context, site, place) for place in (0, 1)):
                yield context.finding(
                    self,
                    site,
                    "logaddexp of -inf and -inf, which a tensor filled with -inf has at the same places: its gradient "
                    "there is NaN; fill it with a large negative number, such as -1e4",
                    chain=chain(context, site),
                )

    def _of_batch(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """Numbers of the batch as they come: what there is of zero and below in it is data."""
        found = of_batch(context, site)
        if not _reaches_end(site, found) or not _is_read_off(context, site):
            if (zeros := zeros_of_batch(context, site)) and site.id not in context.weighted:
                text = f"{site.op} of numbers that are zero at {zeros} place{'s' * (zeros > 1)} with the batch of "
                text += f"make_batch(): {site.op}(0) is -inf; use a clamp"
                yield context.finding(self, site, text, zeros=zeros, chain=chain(context, site))
            return
        if any(after.op in _REPLACES for after in context.graph.consumers(site.id)):
            return
        is_plain = input_of(site, 0) in (site.attrs.get("batch") or {})
        of = "numbers of the batch, which go" if is_plain else "what comes of numbers of the batch, which goes"
        yield context.finding(
            self,
            site,
            f"{site.op} of {of} from {found.low:g} to {found.high + 0:g} in make_batch(): "
            f"{site.op}({_end(site):g}) is -inf{', and NaN below' if found.low < _end(site) else ''}; use "
            f"{'log1p, or ' if site.op == 'log' and found.low == 0 and found.high > 1 else ''}a clamp",
            low=found.low,
            chain=chain(context, site),
        )

    def _lost(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        """An eps that no format of 16 bits has, added to what the user's code alone keeps above zero."""
        eps, runs = lost_eps(context, site)
        if runs and site.op != "log1p":
            yield context.finding(
                self,
                site,
                f"the eps of {eps:g} under {site.op} rounds to zero under {recipes_in(runs)}: {site.op}(0) is -inf "
                "where what it is added to is zero; add it in float32",
                severity=Severity.INFO,
                eps=eps,
                chain=chain(context, site),
            )

    def _of_spectrum(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        if site.op != "log1p" and (what := spectrum_behind(context.runs[0], site)):
            yield context.finding(
                self,
                site,
                f"{site.op} of {what}",
                severity=Severity.INFO,
                chain=chain(context, site),
            )

    def _of_products(self, context: GraphContext) -> Iterable[Finding]:
        """``xlogy(x, y)`` is 0 where both are, but its gradient in y is x / y."""
        for site in floating_sites(context, "xlogy"):
            place = input_of(site, 1)
            trained = place is not None and site.inputs[place].requires_grad and context.train
            if (
                trained
                and context.runs
                and all(_reaches_end(site, run.ranges.operand(site, 1)) for run in context.runs)
            ):
                yield context.finding(
                    self,
                    site,
                    "xlogy is 0 where both operands are, but its gradient in the second one is x / y: 0 / 0 is NaN; "
                    "use log_softmax, or clamp the second operand",
                    chain=chain(context, site),
                )

    def _of_parameter(self, context: GraphContext, site: Site) -> Iterable[Finding]:
        name = (site.attrs.get("operand_params") or {}).get(0)
        found = [run.ranges.operand(site, 0) for run in context.runs]
        if name is None and all(_reaches_end(site, each) for each in found):
            below = any(each.low < _end(site) for each in found)
            breaks = " and below: NaN" if below else f": {site.op}({_end(site):g}) is -inf"
            yield context.finding(
                self,
                site,
                f"{site.op} of what is worked out from parameters alone and can come to {_end(site):g}{breaks}",
                severity=Severity.INFO,
                chain=chain(context, site),
            )
        if name is not None:
            yield context.finding(
                self,
                site,
                f"{site.op} of the parameter {name}, which training may take to {_end(site):g} and below: NaN; store "
                "its logarithm, or put it through softplus",
                severity=Severity.INFO,
            )

    def _unprotected(self, context: GraphContext, site: Site, runs: tuple[Run, ...]) -> Finding:
        run = runs[0]
        under = "" if len(runs) == len(context.runs) else f" under {recipes_in(runs)}"
        root = run.ranges.root(site, 0)
        low = run.ranges.operand(site, 0).low
        made_by = root.op if root else "its input"
        position = input_of(site, 0)
        is_trained = context.train and (position is None or site.inputs[position].requires_grad)
        gradient = " and its gradient not finite" if is_trained else ""
        instead = _INSTEAD["sigmoid"] if _is_rest_of_share(run, root) else _INSTEAD.get(made_by, "")
        return context.finding(
            self,
            site,
            f"{site.op} of {made_by}, whose values start at {low:g}{under}: {site.op}({_end(site):g}) is -inf"
            f"{gradient}{instead}",
            severity=Severity.INFO if made_by in _MEASURES else None,
            low=low,
            chain=chain(context, site),
        )


_FULL = Range(-math.inf, -math.inf)


def _is_nowhere(context: GraphContext, site: Site, place: int) -> bool:
    """Whether an operand is -inf but for some places: filled so, and written in part, or moved along."""
    if (site.attrs.get("bounds") or {}).get(input_of(site, place)) == (_FULL.low, _FULL.high):
        return True
    made = context.runs[0].ranges.root(site, place) if context.runs else None
    if made is None:
        return False
    if made.op in ("copy", "index_put"):
        return (made.attrs.get("bounds") or {}).get(0) == (_FULL.low, _FULL.high)
    if made.op == "pad":
        return made.attrs.get("value") == -math.inf and _is_nowhere(context, made, 0)
    return made.op in ("full", "full_like", "new_full") and made.attrs.get("fill_value") == -math.inf


def _is_rest_of_share(run: Run, root: Site | None) -> bool:
    """Whether a difference is 1 - sigmoid(x), with a clamp between or without."""
    if root is None or root.op != "sub" or (root.attrs.get("scalars") or {}).get(0) != 1:
        return False
    share = run.ranges.root(root, 1)
    if share is not None and share.op == "clamp":
        share = run.ranges.root(share)
    return share is not None and share.op == "sigmoid"


def _is_off_end_in_batch(context: GraphContext, site: Site) -> bool:
    """Whether the input is worked out from the batch alone and stays off the end with its numbers, as noise levels."""
    found = of_batch(context, site)
    return found.is_known and not _reaches_end(site, found)


_EXACT = frozenset({"neg", "abs", "relu"})
_WITH_NUMBER = frozenset({"mul", "add", "sub", "div"})


def _is_read_off(context: GraphContext, site: Site) -> bool:
    """Whether the bounds of what a site reads are numbers of the batch, as they come or through steps with literals
    alone, such as ``1 - x``: then they are reached."""
    current = site
    for _ in range(_STEPS):
        place = next((at for at, index in enumerate(current.attrs.get("operands") or (0,)) if index is not None), 0)
        if input_of(current, place) in (current.attrs.get("batch") or {}):
            return True
        made = context.runs[0].ranges.root(current, place)
        is_step = made is not None and (
            made.op in _EXACT or (made.op in _WITH_NUMBER and len(made.attrs.get("scalars") or {}) == 1)
        )
        if made is None or not is_step:
            return False
        current = made
    return False


def _end(site: Site) -> float:
    return -1.0 if site.op == "log1p" else 0.0


def _is_share_of_more(run: Run, site: Site) -> bool:
    """Whether the input is a / b with a above zero, and zero for an infinite b alone: no end that numbers come to.

    In FP16 a quotient rounds to zero from a b that is quite usual, and an exponential as b overflows by itself.
    """
    quotient = run.ranges.root(site, 0)
    if quotient is None or quotient.op not in ("div", "reciprocal"):
        return False
    place = 0 if quotient.op == "reciprocal" else 1
    above = place == 0 or run.ranges.operand(quotient, 0).low > 0
    below, divisor = run.ranges.operand(quotient, place), run.ranges.root(quotient, place)
    grows = divisor is not None and (divisor.op in ("exp", "exp2", "expm1") or is_positive_sum(run.ranges, divisor))
    plain = above and below.low >= 0 and below.high == math.inf and not grows
    return plain and "float16" not in run.dtypes[quotient.id].outputs


def _reaches_end(site: Site, found: Range) -> bool:
    """Whether the bound says that zero or less is reached, rather than that nothing is known."""
    return found.is_known and -1e30 < found.low <= _end(site)
