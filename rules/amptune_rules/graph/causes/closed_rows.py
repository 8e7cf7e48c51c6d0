"""G205: softmaxes of rows that the batch's own mask closes as a whole."""

from __future__ import annotations

from collections.abc import Iterator

from amptune.core.finding import Finding
from amptune.core.graph_context import GraphContext
from amptune.core.rule import GraphRule
from amptune_rules.graph._numeric import (
    is_guarded_after,
)


def closed_rows(rule: GraphRule, context: GraphContext) -> Iterator[Finding]:
    """Softmaxes of rows that the batch's own mask closes as a whole."""
    for site in context.graph:
        if (rows := site.attrs.get("closed_rows")) and not is_guarded_after(context, site):
            yield context.finding(
                rule,
                site,
                f"the mask of make_batch() closes {rows} row{'s' * (rows > 1)} of this softmax as a whole: all of "
                "them -inf, so that it is 0 / 0, NaN in every format; leave a place open, or fill with "
                "torch.finfo(x.dtype).min",
                rows=rows,
            )
