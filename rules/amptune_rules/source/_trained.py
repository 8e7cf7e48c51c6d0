"""Models whose parameters an optimizer of the file gets, and what makes those parameters 16 bits wide."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.lint.index import last_name
from amptune.lint.source import SourceFile
from amptune_rules.source._protocol import runs_before

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


def is_in_force(source: SourceFile, conversion: ast.Call, optimizer: ast.Call) -> bool:
    """Whether the conversion is there when the training runs: not after it, not in an export function."""
    function = source.function_of(conversion)
    if function is source.function_of(optimizer):
        return _before_step(source, conversion)
    if isinstance(source.parent(conversion), ast.Expr):
        return function is not None and function.name in ("__init__", "setup", "build_model", "prepare")
    return True  # what the model is bound to, or what a function of this file returns for it


def _before_step(source: SourceFile, conversion: ast.Call) -> bool:
    function = source.function_of(conversion)
    steps = [
        event.node for event in source.events if event.kind in ("step", "optimizer_step") and event.function is function
    ]
    return not any(runs_before(source, step, conversion) for step in steps)


def casts_back(source: SourceFile) -> bool:
    """Whether the file makes parameters float32 again, or has an optimizer that keeps master weights."""
    if any(last_name(call.func) == "cast_training_params" for call in source.nodes(ast.Call)):
        return True
    for name in (*source.nodes(ast.Name), *source.nodes(ast.Attribute)):
        if any(word in last_name(name).lower() for word in ("fp16_optimizer", "master_param", "master_weight")):
            return True
    for loop in source.nodes(ast.For):
        if any(is_parameters(part) for part in ast.walk(loop.iter)):
            inside = [part for item in loop.body for part in ast.walk(item) if isinstance(part, ast.Call)]
            if any(last_name(call.func) == "float" or _makes_float32(source, call) for call in inside):
                return True
    return False


def _makes_float32(source: SourceFile, call: ast.Call) -> bool:
    arguments = [*call.args, *(item.value for item in call.keywords)]
    return last_name(call.func) == "to" and any(source.dtypes(item) == {"float32"} for item in arguments)
