"""What the names in a source file stand for: imported dotted paths, and values that are certainly not tensors."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_NOT_TENSOR_MODULES = frozenset(sys.stdlib_module_names) | {"numpy"}
_PLAIN_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad", "training", "itemsize"})
_PLAIN_METHODS = frozenset({"size", "dim", "numel", "item", "tolist", "stride", "element_size", "nelement"})
_PLAIN_BUILTINS = frozenset({"len", "int", "float", "str", "bool", "range", "isinstance", "hasattr", "repr", "ord"})
_CONTAINERS = (ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
_PLAIN_ANNOTATIONS = frozenset({"int", "float", "str", "bool", "bytes"})


def is_function(node: ast.AST) -> TypeGuard[FunctionNode]:
    """Whether ``node`` defines a function."""
    return isinstance(node, FunctionNode)


def is_container(node: ast.expr) -> bool:
    """Whether an expression writes out a list, tuple, dict or set."""
    return isinstance(node, _CONTAINERS)


class Names:
    """The names bound in one module or function, with a way out to the scope around it.

    A name stands for the dotted path that it was imported as or assigned from (``F`` for torch.nn.functional), for a
    plain value (a number, a string, a shape: never a tensor, nor something that holds one), or for something unknown.
    """

    def __init__(self, owner: ast.Module | FunctionNode, outer: Names | None = None) -> None:
        self._outer = outer
        self._paths: dict[str, str | None] = {}
        self._plain: set[str] = set()
        self._stars: list[str] = []
        self._stores: list[str] = []
        nodes = list(own_nodes(owner))
        self._bind_unknown(owner, nodes)
        for node in nodes:
            self._bind_import(node)
        for node in nodes:
            self._bind_alias(node)
        self._bind_plain(owner, nodes)

    def path(self, node: ast.expr) -> str | None:
        """The dotted path that a name or attribute chain stands for, if its root is imported."""
        if isinstance(node, ast.Attribute):
            root = self.path(node.value)
            return f"{root}.{node.attr}" if root else None
        if isinstance(node, ast.Name):
            return self._path_of_name(node.id)
        return None

    def name_of(self, path: str) -> str | None:
        """A name that stands for the dotted path, if this scope has one."""
        return next((name for name, found in self._paths.items() if found == path), None)

    def inside_lambda(self, arguments: Mapping[str, ast.expr]) -> Names:
        """The names in a lambda written here that is called with ``arguments``: name -> what is passed for it."""
        inner = Names(ast.Module([], []), self)
        inner._paths = dict.fromkeys(arguments)
        inner._plain = {name for name, value in arguments.items() if self.is_plain(value)}
        return inner

    def is_plain(self, node: ast.expr) -> bool:
        """Whether the value of an expression is certainly neither a tensor nor a container of them."""
        if isinstance(node, (ast.Constant, ast.JoinedStr)):
            return True
        if isinstance(node, ast.Name):
            return self._is_plain_name(node.id)
        if isinstance(node, ast.Attribute):
            return node.attr in _PLAIN_ATTRIBUTES or self._is_from_plain_module(node)
        if isinstance(node, ast.Subscript):
            return self.is_plain(node.value)
        if isinstance(node, ast.Call):
            return self._is_plain_call(node)
        parts = _operands(node)
        return bool(parts) and all(self.is_plain(part) for part in parts)

    def _path_of_name(self, name: str) -> str | None:
        if name in self._paths:
            return self._paths[name]
        if self._outer is not None:
            return self._outer._path_of_name(name)
        return f"{self._stars[0]}.{name}" if self._stars else None

    def _is_plain_name(self, name: str) -> bool:
        if name in self._plain:
            return True
        return name not in self._paths and self._outer is not None and self._outer._is_plain_name(name)

    def _is_from_plain_module(self, node: ast.expr) -> bool:
        path = self.path(node)
        return path is not None and path.split(".")[0] in _NOT_TENSOR_MODULES

    def _is_plain_call(self, call: ast.Call) -> bool:
        function = call.func
        if isinstance(function, ast.Name):
            if function.id in _PLAIN_BUILTINS and self._path_of_name(function.id) is None:
                return True
            if function.id in {"min", "max", "abs", "round"} and call.args:
                return all(self.is_plain(part) for part in call.args)
        if isinstance(function, ast.Attribute) and function.attr in _PLAIN_METHODS:
            return True
        return self._is_from_plain_module(function)

    def _bind_unknown(self, owner: ast.Module | FunctionNode, nodes: Iterable[ast.AST]) -> None:
        """Start with every local name unknown, so that it hides an import of the same name."""
        if is_function(owner):
            self._paths.update(dict.fromkeys((argument.arg for argument in _arguments(owner)), None))
        for node in nodes:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._paths[node.id] = None
                self._stores.append(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                self._paths[node.name] = None

    def _bind_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                self._paths[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                if alias.name == "*":
                    self._stars += [module] if module.split(".")[0] == "torch" else []
                else:
                    self._paths[alias.asname or alias.name] = f"{module}.{alias.name}"

    def _bind_alias(self, node: ast.AST) -> None:
        """``softmax = F.softmax`` gives the name the path of its value, unless it has another value elsewhere."""
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if isinstance(node.value, ast.Attribute) and self._stores.count(name) == 1:
                self._paths[name] = self.path(node.value)

    def _bind_plain(self, owner: ast.Module | FunctionNode, nodes: list[ast.AST]) -> None:
        """Names whose every binding is a plain value; found in order, so that ``T = x.shape[1]; S = T // 2`` works."""
        bindings: dict[str, list[ast.expr | None]] = {}
        for name, value in _bindings(owner, nodes):
            bindings.setdefault(name, []).append(value)
        self._plain = {name for name, values in bindings.items() if None not in values}
        while True:
            wrong = {n for n in self._plain if not all(v is not None and self.is_plain(v) for v in bindings[n])}
            if not wrong:
                return
            self._plain -= wrong


def own_nodes(owner: ast.Module | FunctionNode) -> Iterator[ast.AST]:
    """All nodes of a module or function body, without the bodies of the functions and classes defined in it."""
    pending: list[ast.AST] = list(reversed(owner.body))
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            pending.extend(reversed(list(ast.iter_child_nodes(node))))


def _arguments(function: FunctionNode) -> list[ast.arg]:
    named = function.args
    extra = [argument for argument in (named.vararg, named.kwarg) if argument]
    return [*named.posonlyargs, *named.args, *named.kwonlyargs, *extra]


def _bindings(owner: ast.AST, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.expr | None]]:
    """Every binding of a name with the value it takes; None where the value is not visible."""
    if is_function(owner):
        for argument in _arguments(owner):
            annotation = argument.annotation
            known = isinstance(annotation, ast.Name) and annotation.id in _PLAIN_ANNOTATIONS
            yield argument.arg, ast.Constant(0) if known else None
    explained: set[int] = set()
    for node in nodes:
        for name, value in _assigned(node):
            explained.add(id(name))
            yield name.id, value
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in explained:
            yield node.id, None


def _assigned(node: ast.AST) -> Iterator[tuple[ast.Name, ast.expr]]:
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value is not None:
        targets, value = [node.target], node.value
    elif isinstance(node, ast.For):
        is_range = isinstance(node.iter, ast.Call) and isinstance(node.iter.func, ast.Name)
        targets, value = [node.target], node.iter
        if not (is_range and node.iter.func.id == "range"):  # type: ignore[attr-defined]
            return
    else:
        return
    for target in targets:
        yield from _unpacked(target, value)


def _unpacked(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    if isinstance(target, ast.Name):
        yield target, value
    elif isinstance(target, (ast.Tuple, ast.List)):
        same_length = isinstance(value, (ast.Tuple, ast.List)) and len(value.elts) == len(target.elts)
        parts = value.elts if same_length else [value] * len(target.elts)  # type: ignore[attr-defined]
        for one, part in zip(target.elts, parts, strict=True):
            yield from _unpacked(one, part)


def _operands(node: ast.expr) -> list[ast.expr]:
    """The parts that decide what an operator's result is; empty for other expressions."""
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    return []
