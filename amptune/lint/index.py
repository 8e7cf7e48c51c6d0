"""One walk over a parsed file: parents, scopes, and nodes by type in source order."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from typing import TypeVar

Node = TypeVar("Node", bound=ast.AST)

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

# Fields that hold no node, or one that no rule asks for (contexts and operators are shared singletons).
_NOT_NODES = frozenset(
    {"ctx", "op", "ops", "id", "attr", "arg", "n", "s", "kind", "lineno", "type_comment", "level", "module", "asname",
     "simple", "is_async", "conversion", "name", "kwd_attrs", "rest", "tag", "type_ignores"}
)  # fmt: skip


def _child_fields(cls: type[ast.AST]) -> tuple[str, ...]:
    if cls in (ast.Constant, ast.Name, ast.Global, ast.Nonlocal, ast.alias, ast.MatchSingleton):
        return ()
    fields = [field for field in cls._fields if field not in _NOT_NODES]
    if cls.__name__ == "TypeAlias":
        fields.insert(0, "name")
    return tuple(reversed(fields))


_CHILDREN: dict[type[ast.AST], tuple[str, ...]] = {
    cls: _child_fields(cls) for cls in vars(ast).values() if isinstance(cls, type) and issubclass(cls, ast.AST)
}


# Fields of a scope's node that are evaluated outside of it.
_HEADERS: dict[type[ast.AST], tuple[str, ...]] = {
    **dict.fromkeys(FUNCTIONS, ("decorator_list", "args", "returns")),
    ast.ClassDef: ("decorator_list", "bases", "keywords"),
    ast.Lambda: ("args",),
}
_SCOPE_TYPES = frozenset(
    {ast.Module, *FUNCTIONS, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp}
)


def last_name(node: ast.AST | None) -> str:
    """The last identifier of a dotted name, "" for other expressions."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


class TreeIndex:
    """Parents, scopes and nodes by type. Built without recursion, so that deep nesting does not matter.

    Attributes:
        tree: the module.
        parents: the node that holds each node.
        scopes: the scope in which the names in a node are looked up; a function's header belongs to the one around it.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.parents: dict[ast.AST, ast.AST] = {}
        self.scopes: dict[ast.AST, ast.AST] = {tree: tree}
        self._functions: dict[ast.AST, ast.AST | None] = {}
        self._classes: dict[ast.AST, ast.AST | None] = {}
        self._by_type: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
        self._walk()

    def _walk(self) -> None:
        parents, scopes, by_type, children = self.parents, self.scopes, self._by_type, _CHILDREN
        stack: list[ast.AST] = [self.tree]
        pop, push = stack.pop, stack.append
        while stack:
            node = pop()
            kind = type(node)
            by_type[kind].append(node)
            fields = children[kind]
            if not fields:
                continue
            outer = scope = scopes[node]
            is_scope = kind in _SCOPE_TYPES
            for field in fields:
                if is_scope:
                    scope = outer if field in _HEADERS.get(kind, ()) else node
                value = getattr(node, field)
                if type(value) is list:
                    for child in reversed(value):
                        if child is not None:
                            parents[child] = node
                            scopes[child] = scope
                            push(child)
                elif value is not None:
                    parents[value] = node
                    scopes[value] = scope
                    push(value)

    def nodes(self, *types: type[Node]) -> list[Node]:
        """All nodes of these exact types: in source order for one type, type by type for several."""
        found: list[Node] = []
        for kind in types:
            found.extend(self._by_type.get(kind, ()))  # type: ignore[arg-type]
        return found

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that holds this one; None for the module."""
        return self.parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """Parents from the inside out, the module last."""
        current = self.parents.get(node)
        while current is not None:
            yield current
            current = self.parents.get(current)

    def enclosing(self, node: ast.AST, *types: type[Node]) -> Node | None:
        """The innermost ancestor of one of these types."""
        for ancestor in self.ancestors(node):
            if isinstance(ancestor, types):
                return ancestor
        return None

    def function_of(self, node: ast.AST) -> FunctionNode | None:
        """The function whose body or header holds the node (lambdas are not counted)."""
        found = self._around(node, self._functions, FUNCTIONS)
        return found if isinstance(found, FUNCTIONS) else None

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The class whose body holds the node, through methods and nested functions."""
        found = self._around(node, self._classes, (ast.ClassDef,))
        return found if isinstance(found, ast.ClassDef) else None

    def _around(
        self, node: ast.AST, known: dict[ast.AST, ast.AST | None], types: tuple[type[ast.AST], ...]
    ) -> ast.AST | None:
        """The innermost ancestor of one of the types, remembered for every node on the way to it."""
        parents = self.parents
        path: list[ast.AST] = []
        while node not in known:
            path.append(node)
            parent = parents.get(node)
            if parent is None or type(parent) in types:
                known[node] = parent
                break
            node = parent
        found = known[node]
        for item in path:
            known[item] = found
        return found

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """The innermost statement that holds the node (itself, when it is one)."""
        current: ast.AST | None = node
        while current is not None and not isinstance(current, ast.stmt):
            current = self.parents.get(current)
        assert current is not None, "every expression lies in a statement"
        return current

    def loops_of(self, node: ast.AST) -> list[ast.For | ast.AsyncFor | ast.While]:
        """Loops around the node in the same function, innermost first; a loop's header and else are outside of it."""
        loops: list[ast.For | ast.AsyncFor | ast.While] = []
        child = node
        for ancestor in self.ancestors(node):
            if isinstance(ancestor, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
                break
            if isinstance(ancestor, LOOPS) and child in ancestor.body:
                loops.append(ancestor)
            child = ancestor
        return loops

    def is_inside(self, node: ast.AST, ancestor: ast.AST) -> bool:
        """Whether ``ancestor`` is the node or one of its ancestors."""
        return node is ancestor or any(parent is ancestor for parent in self.ancestors(node))
