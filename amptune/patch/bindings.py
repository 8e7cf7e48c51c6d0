"""Where a name of the module gets its value, and what the function that builds the model does to it."""

from __future__ import annotations

import ast
import dataclasses

from amptune.core.source_names import FunctionNode, is_function, own_nodes

_REGISTERS = frozenset({"add_module", "register_module", "set_submodule"})


@dataclasses.dataclass(frozen=True)
class Binding:
    """How a top-level name is bound: by ``def``, or by a statement that ends at ``line`` (1-based)."""

    is_def: bool
    line: int = 0


def binding_of(tree: ast.Module, name: str) -> Binding | None:
    """How the module binds ``name``; None where it does not."""
    if any(is_function(node) and node.name == name for node in own_nodes(tree)):
        return Binding(is_def=True)
    lines = [statement.end_lineno or 0 for statement in tree.body if name in _bound_by(statement)]
    return Binding(is_def=False, line=lines[-1]) if lines else None


def defines_class(tree: ast.Module, qualified_name: str) -> bool:
    """Whether the module defines the class, at top level, in another class or in a function."""
    return qualified_name in _class_paths(tree, "")


def has_subclass(tree: ast.Module, qualified_name: str) -> bool:
    """Whether another class of the module inherits from the class."""
    name = qualified_name.rpartition(".")[2]
    bases = [base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    return any(_last_name(base) == name for base in bases)


def changes_model(tree: ast.Module, function_name: str) -> bool:
    """Whether the function replaces parts of the model that it returns, or wraps it, after its class built it."""
    found = [node for node in own_nodes(tree) if is_function(node) and node.name == function_name]
    builders = _building_methods(tree) | _REGISTERS
    return any(_changes_what_it_returns(function, builders) for function in found)


def _bound_by(statement: ast.stmt) -> set[str]:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.split(".")[0] for alias in statement.names}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) and statement.value else targets
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _class_paths(node: ast.AST, prefix: str) -> set[str]:
    paths: set[str] = set()
    for child in ast.iter_child_nodes(node):
        name = child.name if isinstance(child, ast.ClassDef) or is_function(child) else ""
        path = f"{prefix}{name}"
        paths |= {path} if isinstance(child, ast.ClassDef) else set()
        paths |= _class_paths(child, f"{path}." if name else prefix)
    return paths


def _building_methods(tree: ast.Module) -> frozenset[str]:
    """Methods that may set submodules: those but the constructor that assign ``self.head = make_head()``."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = [part for node in classes for part in node.body if is_function(part) and part.name != "__init__"]
    return frozenset(method.name for method in methods if any(map(_builds_on_self, own_nodes(method))))


def _builds_on_self(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return False
    return any(isinstance(target, ast.Attribute) and _root(target) == "self" for target in node.targets)


def _changes_what_it_returns(function: FunctionNode, builders: frozenset[str]) -> bool:
    nodes = list(own_nodes(function))
    returned = {node.value.id for node in nodes if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)}
    return any(_changes(node, returned, builders) for node in nodes)


def _changes(node: ast.AST, names: set[str], builders: frozenset[str]) -> bool:
    if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
        return _root(node) in names
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        takes_model = any(isinstance(part, ast.Name) and part.id in names for part in node.value.args)
        return takes_model and any(isinstance(target, ast.Name) and target.id in names for target in node.targets)
    if isinstance(node, ast.Call):
        is_setattr = isinstance(node.func, ast.Name) and node.func.id == "setattr"
        if is_setattr and node.args:
            return _root(node.args[0]) in names
        return isinstance(node.func, ast.Attribute) and node.func.attr in builders
    return False


def _root(node: ast.expr) -> str:
    """The name that a chain of attributes and subscripts starts from."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):  # Generic[T]
        return _last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
