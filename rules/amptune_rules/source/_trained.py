"""Models whose parameters an optimizer of the file gets, and what makes those parameters 16 bits wide."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.lint.index import last_name
from amptune.lint.source import SourceFile

_METHODS = {"half": "float16", "bfloat16": "bfloat16"}
_ADAPTERS = ("get_peft_model", "prepare_model_for_kbit_training", "inject_adapter_in_model", "cast_training_params")


def trained(source: SourceFile) -> Iterator[tuple[ast.Call, ast.expr]]:
    """Optimizer constructors with the models whose ``parameters()`` they get."""
    for call in source.nodes(ast.Call):
        names = source.qualified(call.func)
        if not any(name.startswith("torch.optim.") and ".lr_scheduler." not in name for name in names):
            continue
        first = source.argument(call, "params", 0)
        for leaf in source.values(first) if first is not None else ():
            for part in ast.walk(leaf):
                if isinstance(part, ast.Call) and is_parameters(part) and isinstance(part.func, ast.Attribute):
                    yield call, part.func.value


def conversions(source: SourceFile, model: ast.expr, dtype: str) -> Iterator[ast.Call]:
    """Calls that give the model, or what it is bound to, a 16-bit dtype; none where something else is put around it."""
    values = [binding.value for binding in source.bindings(model) if binding.value is not None]
    chain = list(dict.fromkeys(call for value in (*values, *source.values(model)) for call in _chain(value)))
    if any(last_name(call.func) in _ADAPTERS for call in chain):
        return
    for call in chain:
        if _makes(source, call, dtype):
            yield call
    target = ast.dump(model)
    bound = [binding.node for binding in source.bindings(model)]
    for call in source.method_calls("half", "bfloat16", "to", "type"):
        assert isinstance(call.func, ast.Attribute)
        same = ast.dump(call.func.value) == target and [item.node for item in source.bindings(call.func.value)] == bound
        if same and call not in chain and isinstance(source.parent(call), ast.Expr) and _makes(source, call, dtype):
            yield call


def _chain(value: ast.expr) -> list[ast.Call]:
    """Calls that a value is made by: ``Net().cuda().half()``, and the same inside ``DDP(...)``."""
    found: list[ast.Call] = []
    while isinstance(value, ast.Call):
        found.append(value)
        if isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Call):
            value = value.func.value
        elif len(value.args) >= 1 and isinstance(value.args[0], ast.Call):
            value = value.args[0]
        else:
            break
    return found


def _makes(source: SourceFile, call: ast.Call, dtype: str) -> bool:
    name = last_name(call.func)
    if name in _METHODS:
        return _METHODS[name] == dtype and not call.args and isinstance(call.func, ast.Attribute)
    arguments = {item.arg: item.value for item in call.keywords}
    if name == "from_pretrained":
        given = arguments.get("torch_dtype", arguments.get("dtype"))
        return given is not None and source.dtypes(given) == {dtype} and "quantization_config" not in arguments
    if name in ("to", "type"):
        return any(source.dtypes(item) == {dtype} for item in (*call.args, *arguments.values()) if _is_dtype(item))
    return False


def _is_dtype(item: ast.expr) -> bool:
    return not isinstance(item, ast.Constant)


def is_parameters(node: ast.AST) -> bool:
    """Whether this is a call of ``model.parameters()``."""
    return isinstance(node, ast.Call) and last_name(node.func) in ("parameters", "named_parameters")
