"""Which names a file binds, where, and to what."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Literal

from amptune.lint.index import FUNCTIONS, FunctionNode, TreeIndex

BindingKind = Literal["import", "assign", "parameter", "function", "class", "loop", "with", "unpack", "update", "other"]


@dataclasses.dataclass(slots=True, eq=False)  # not frozen: a file has thousands, and freezing doubles their cost
class Binding:
    """One place where a name gets a value.

    ``value`` is the bound expression of an assignment, the context of a ``with``, the right side of an unpacking, the
    default of a parameter. ``target`` is the qualified name of an import.
    """

    name: str
    kind: BindingKind
    node: ast.AST
    value: ast.expr | None = None
    target: str = ""


class Scopes:
    """Bindings by scope, and attributes of ``self`` by class."""

    def __init__(self, index: TreeIndex) -> None:
        self._index = index
        self._bindings: dict[ast.AST, dict[str, list[Binding]]] = {}
        self._attributes: dict[ast.ClassDef, dict[str, list[Binding]]] = {}
        self._globals: dict[ast.AST, set[str]] = {}
        self._self_names: dict[ast.AST, str | None] = {}
        self._found: dict[tuple[ast.AST, str], list[Binding]] = {}
        self.wildcards: list[str] = []
        self._collect()

    def scope_of(self, node: ast.AST) -> ast.AST:
        """The scope in which the node's names are looked up; the module for a node that is in no tree."""
        return self._index.scopes.get(node, self._index.tree)

    def lookup(self, name: str, node: ast.AST) -> list[Binding]:
        """All bindings of the name in the innermost scope that has one; [] for builtins and unknown names."""
        key = (self.scope_of(node), name)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._look_up(*key)
        return found

    def _look_up(self, innermost: ast.AST, name: str) -> list[Binding]:
        scope = innermost
        while True:
            # names of a class body are seen by the body alone, not by its methods
            if scope is innermost or not isinstance(scope, ast.ClassDef):
                found = self._bindings.get(scope, {}).get(name)
                if found:
                    return found
            if isinstance(scope, ast.Module):
                return []
            scope = self.scope_of(scope)

    def home(self, binding: Binding) -> ast.AST:
        """The scope that a binding belongs to."""
        if isinstance(binding.node, ast.arg):
            arguments = self._index.parent(binding.node)
            owner = self._index.parent(arguments) if arguments is not None else None
            assert owner is not None
            return owner
        return self.scope_of(binding.node)

    def attribute(self, cls: ast.ClassDef, name: str) -> list[Binding]:
        """Bindings of ``self.name`` and of the class attribute, in this class."""
        return [*self._attributes.get(cls, {}).get(name, ()), *self._bindings.get(cls, {}).get(name, ())]

    def self_name(self, function: ast.AST) -> str | None:
        """The name of a method's first parameter; None when the function is not a method."""
        if function not in self._self_names:
            self._self_names[function] = self._find_self_name(function)
        return self._self_names[function]

    def _find_self_name(self, function: ast.AST) -> str | None:
        if not isinstance(function, FUNCTIONS) or not isinstance(self._index.parent(function), ast.ClassDef):
            return None
        if any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list):
            return None
        parameters = [*function.args.posonlyargs, *function.args.args]
        return parameters[0].arg if parameters else None

    def owner(self, node: ast.expr) -> ast.ClassDef | None:
        """The class whose instance the expression is, when it is the ``self`` of a method around it."""
        if not isinstance(node, ast.Name):
            return None
        scope = self.scope_of(node)
        while not isinstance(scope, ast.Module):
            if self.self_name(scope) == node.id:
                parent = self._index.parent(scope)
                return parent if isinstance(parent, ast.ClassDef) else None
            scope = self.scope_of(scope)
        return None

    @cached_property
    def alias_identifiers(self) -> frozenset[str]:
        """Identifiers that may stand for something of another name: ``import a as b``, ``b = a``, ``self.b = a``."""
        tables = [*self._bindings.values(), *self._attributes.values()]
        bindings = [binding for table in tables for found in table.values() for binding in found]
        return frozenset(
            binding.name
            for binding in bindings
            if (binding.kind == "import" and binding.target.rpartition(".")[2] != binding.name)
            or (binding.kind == "assign" and isinstance(binding.value, ast.Name | ast.Attribute | ast.IfExp))
        )

    def _collect(self) -> None:
        index = self._index
        for declaration in index.nodes(ast.Global):
            self._globals.setdefault(self.scope_of(declaration), set()).update(declaration.names)
        for plain in index.nodes(ast.Import):
            self._import(plain)
        for origin in index.nodes(ast.ImportFrom):
            self._import_from(origin)
        functions: list[FunctionNode] = [*index.nodes(ast.FunctionDef), *index.nodes(ast.AsyncFunctionDef)]
        for function in functions:
            self._add(function, Binding(function.name, "function", function))
        for cls in index.nodes(ast.ClassDef):
            self._add(cls, Binding(cls.name, "class", cls))
        for arguments in index.nodes(ast.arguments):
            self._parameters(arguments)
        for name in index.nodes(ast.Name):
            if type(name.ctx) is not ast.Load:
                self._add(name, _binding(index, name, name.id))
        for handler in index.nodes(ast.ExceptHandler):
            if handler.name:
                self._add(handler, Binding(handler.name, "other", handler))
        for attribute in index.nodes(ast.Attribute):
            if type(attribute.ctx) is not ast.Load and (cls_ := self.owner(attribute.value)):
                entry = self._attributes.setdefault(cls_, {}).setdefault(attribute.attr, [])
                entry.append(_binding(index, attribute, attribute.attr))

    def _add(self, node: ast.AST, binding: Binding) -> None:
        scope = self.scope_of(node)
        parent = self._index.parent(node)
        if isinstance(node, ast.Name) and isinstance(parent, ast.NamedExpr):
            while isinstance(scope, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                scope = self.scope_of(scope)
        if binding.name in self._globals.get(scope, ()):
            scope = self._index.tree
        self._bindings.setdefault(scope, {}).setdefault(binding.name, []).append(binding)

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.asname:
                self._add(node, Binding(alias.asname, "import", node, target=alias.name))
            else:
                top = alias.name.partition(".")[0]
                self._add(node, Binding(top, "import", node, target=top))

    def _import_from(self, node: ast.ImportFrom) -> None:
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            if alias.name == "*":
                self.wildcards.append(module)
                continue
            target = f"{module}{alias.name}" if module.endswith(".") else f"{module}.{alias.name}"
            self._add(node, Binding(alias.asname or alias.name, "import", node, target=target))

    def _parameters(self, arguments: ast.arguments) -> None:
        scope = self._index.parent(arguments)
        assert scope is not None
        table = self._bindings.setdefault(scope, {})
        for argument, default in parameters_with_defaults(arguments):
            table.setdefault(argument.arg, []).append(Binding(argument.arg, "parameter", argument, default))


def parameters_with_defaults(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Every parameter with its default, if any; ``*args`` and ``**kwargs`` last."""
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = len(positional) - len(arguments.defaults)
    yield from zip(positional, [None] * missing + list(arguments.defaults), strict=True)
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    for argument in (arguments.vararg, arguments.kwarg):
        if argument is not None:
            yield argument, None


def _binding(index: TreeIndex, node: ast.Name | ast.Attribute, name: str) -> Binding:
    """What a stored name or attribute is bound to."""
    target: ast.AST = node
    parent = index.parent(node)
    path: list[int] = []
    starred = False
    while isinstance(parent, ast.Tuple | ast.List | ast.Starred):
        if isinstance(parent, ast.Starred):
            starred = True
        else:
            path.insert(0, next(i for i, item in enumerate(parent.elts) if item is target))
        target, parent = parent, index.parent(parent)
    match parent:
        case ast.Assign(value=value) if starred:
            return Binding(name, "unpack", parent, value)
        case ast.Assign(value=value) | ast.NamedExpr(value=value):
            return _assigned(name, parent, value, path)
        case ast.AnnAssign(value=value) if _is_field(index.parent(parent)):
            return Binding(name, "parameter", parent, value)
        case ast.AnnAssign(value=value):
            return Binding(name, "assign" if value else "other", parent, value)
        case ast.AugAssign(value=value):
            return Binding(name, "update", parent, value)
        case ast.For(iter=value) | ast.AsyncFor(iter=value) | ast.comprehension(iter=value):
            return Binding(name, "loop", parent, value)
        case ast.withitem(context_expr=value):
            return Binding(name, "unpack" if path else "with", parent, value)
    return Binding(name, "other", parent or node)


def _is_field(parent: ast.AST | None) -> bool:
    """Whether an annotated name in this class body is a field that the generated constructor may set."""
    return isinstance(parent, ast.ClassDef) and bool(parent.decorator_list or parent.bases)


def _assigned(name: str, node: ast.AST, value: ast.expr, path: list[int]) -> Binding:
    for position in path:
        if isinstance(value, ast.Tuple | ast.List) and position < len(value.elts):
            if any(isinstance(item, ast.Starred) for item in value.elts):
                return Binding(name, "unpack", node, value)
            value = value.elts[position]
        else:
            return Binding(name, "unpack", node, value)
    return Binding(name, "assign", node, value)
