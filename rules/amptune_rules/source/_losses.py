"""Calls of torch's losses: functions and module objects."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amptune.core.ops import OPS, Family
from amptune.lint.source import SourceFile
from amptune_rules.source._half_models import constructor

_FUNCTIONS = {f"torch.nn.functional.{name}": name for name, op in OPS.items() if op.family is Family.LOSS}
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_ODD_MODULES = {
    "BCELoss": "binary_cross_entropy", "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "CrossEntropyLoss": "cross_entropy", "KLDivLoss": "kl_div", "SmoothL1Loss": "smooth_l1_loss",
    "MultiLabelMarginLoss": "multilabel_margin_loss", "NLLLoss": "nll_loss", "MSELoss": "mse_loss",
    "L1Loss": "l1_loss", "CTCLoss": "ctc_loss", "PoissonNLLLoss": "poisson_nll_loss",
    "GaussianNLLLoss": "gaussian_nll_loss",
}  # fmt: skip


def loss_calls(source: SourceFile) -> Iterator[tuple[ast.Call, str, list[ast.expr]]]:
    """Calls of a loss, with the name of its op and the values it compares (prediction first)."""
    made = {
        call: _op_of_module(name)
        for call in source.calls(*(f"torch.nn.{name}" for name in _module_names(source)))
        for name in [path.rpartition(".")[2] for path in source.qualified(call.func)][:1]
    }
    for call in source.calls(*_FUNCTIONS):
        values = [source.argument(call, "input", 0), source.argument(call, "target", 1)]
        found = [value for value in values if value is not None]
        if found:
            yield call, _FUNCTIONS[source.qualified(call.func)[0]], found
    for call in source.nodes(ast.Call) if made else ():
        makers = _makers(source, call) if call.args and call not in made else []
        names = {made[maker] for maker in makers if maker in made}
        if len(names) == 1:
            yield call, names.pop(), call.args[:2]


def may_be_own_loss(source: SourceFile, call: ast.Call) -> bool:
    """Whether what is called is, by one of several assignments, no loss of torch: it may care for 16 bits itself."""
    return any(
        not any(_op_of_module(name.rpartition(".")[2]) in OPS for name in source.qualified(maker.func))
        for maker in _makers(source, call)
    )


def _makers(source: SourceFile, call: ast.Call) -> list[ast.Call]:
    """What made the loss that is called: ``nn.CrossEntropyLoss()`` of ``nn.CrossEntropyLoss().to(device)``."""
    leaves = [constructor(leaf) for leaf in source.values(call.func) if isinstance(leaf, ast.Call)]
    return [leaf for leaf in leaves if isinstance(leaf, ast.Call)]


def _module_names(source: SourceFile) -> set[str]:
    """Names of torch's loss classes that the file writes."""
    words = {attribute.attr for attribute in source.nodes(ast.Attribute)} | {name.id for name in source.nodes(ast.Name)}
    words |= {alias.name for node in source.nodes(ast.ImportFrom) for alias in node.names}
    return {word for word in words if word.endswith("Loss") and _op_of_module(word) in OPS}


def _op_of_module(name: str) -> str:
    return _ODD_MODULES.get(name) or _WORD.sub("_", name).lower()
