"""From an expression to the qualified names it may stand for, and to the expressions it may be bound to."""

from __future__ import annotations

import ast
import builtins

from amptune.lint.index import FUNCTIONS, FunctionNode, TreeIndex
from amptune.lint.scopes import Binding, Scopes

# The same object under another name: long module path -> the spelling rules ask for.
_SAME_MODULE = {
    "torch.cuda.amp.autocast_mode": "torch.cuda.amp",
    "torch.cuda.amp.grad_scaler": "torch.cuda.amp",
    "torch.cuda.amp.common": "torch.cuda.amp",
    "torch.cpu.amp.autocast_mode": "torch.cpu.amp",
    "torch.cpu.amp.grad_scaler": "torch.cpu.amp",
    "torch.amp.autocast_mode": "torch.amp",
    "torch.amp.grad_scaler": "torch.amp",
    "torch.nn.utils.clip_grad": "torch.nn.utils",
    "torch.nn.modules.loss": "torch.nn",
    "torch.nn.modules": "torch.nn",
    "torch.distributed.fsdp.sharded_grad_scaler": "torch.distributed.fsdp",
    "torch.distributed.fsdp.fully_sharded_data_parallel": "torch.distributed.fsdp",
}
_SAME_NAME = {
    "torch.autocast": "torch.amp.autocast",
    "torch.GradScaler": "torch.amp.GradScaler",
    "torch.half": "torch.float16",
    "torch.float": "torch.float32",
    "torch.double": "torch.float64",
    "torch.nn.functional.tanh": "torch.tanh",
    "torch.nn.functional.sigmoid": "torch.sigmoid",
}
_WILDCARDS = {
    "torch.cuda.amp": ("autocast", "GradScaler", "custom_fwd", "custom_bwd"),
    "torch.amp": ("autocast", "GradScaler", "custom_fwd", "custom_bwd"),
    "torch.nn": (),
    "apex": ("amp",),
}
_BUILTINS = frozenset(dir(builtins))
_DEPTH = 6
_VALUE_DEPTH = 40
_MAX_VALUES = 32


def canonical(name: str) -> str:
    """One spelling for an object that torch exports under several names."""
    module, _, last = name.rpartition(".")
    return _SAME_NAME.get(name) or (f"{_SAME_MODULE[module]}.{last}" if module in _SAME_MODULE else name)


_SPELLINGS: dict[str, set[str]] = {}
for _spelled, _same in _SAME_NAME.items():
    _SPELLINGS.setdefault(_same, set()).add(_spelled.rpartition(".")[2])


def last_parts(name: str) -> set[str]:
    """The identifiers that an expression for this qualified name may end in, aliases aside."""
    return {name.rpartition(".")[2]} | _SPELLINGS.get(name, set())


class Names:
    """Resolves names in one file."""

    def __init__(self, index: TreeIndex, scopes: Scopes) -> None:
        self._index = index
        self._scopes = scopes
        self._memo: dict[tuple[ast.AST, str], tuple[str, ...]] = {}
        self._values: dict[ast.expr, list[ast.expr]] = {}
        self._classes: dict[tuple[ast.AST, str], ast.ClassDef | None] = {}
        self._attributes: dict[tuple[ast.ClassDef, str], list[Binding]] = {}
        self._definitions: dict[ast.expr, FunctionNode | None] = {}

    def qualified(self, node: ast.AST | None, depth: int = 0) -> tuple[str, ...]:
        """Qualified names that the expression may stand for: several after ``try: import``, none when unknown.

        ``amp.autocast`` after ``import torch.cuda.amp as amp`` is ``("torch.cuda.amp.autocast",)``. Relative imports
        keep their dots. A builtin is its bare name.
        """
        if depth > _DEPTH:
            return ()
        if isinstance(node, ast.Name):
            return self._of_name(node, depth)
        if isinstance(node, ast.Attribute):
            bases = self.qualified(node.value, depth + 1)
            if bases:
                return tuple(canonical(f"{base}.{node.attr}") for base in bases)
            return self._of_attribute(node, depth)
        return ()

    def _of_name(self, node: ast.Name, depth: int) -> tuple[str, ...]:
        key = (self._scopes.scope_of(node), node.id)
        if key not in self._memo:
            self._memo[key] = ()  # a name defined by itself resolves to nothing
            self._memo[key] = self._resolve(node, depth)
        return self._memo[key]

    def _resolve(self, node: ast.Name, depth: int) -> tuple[str, ...]:
        bindings = self._scopes.lookup(node.id, node)
        if bindings:
            return self._of_bindings(bindings, depth)
        if node.id in _BUILTINS:
            return (node.id,)
        return tuple(
            canonical(f"{module}.{node.id}")
            for module in self._scopes.wildcards
            if node.id in _WILDCARDS.get(module, ()) or (module == "torch.nn" and node.id[:1].isupper())
        )

    def _of_attribute(self, node: ast.Attribute, depth: int) -> tuple[str, ...]:
        return self._of_bindings(self.attribute_bindings(node), depth)

    def _of_bindings(self, bindings: list[Binding], depth: int) -> tuple[str, ...]:
        names: list[str] = []
        for binding in bindings:
            if binding.kind == "import":
                names.append(canonical(binding.target))
            elif binding.kind == "assign" and isinstance(binding.value, ast.Name | ast.Attribute | ast.IfExp):
                values = (
                    [binding.value.body, binding.value.orelse]
                    if isinstance(binding.value, ast.IfExp)
                    else [binding.value]
                )
                for value in values:
                    names.extend(self.qualified(value, depth + 1))
        return tuple(dict.fromkeys(names))

    def bindings(self, node: ast.expr) -> list[Binding]:
        """Every binding of a name, or of an attribute of self."""
        if isinstance(node, ast.Name):
            return self._scopes.lookup(node.id, node)
        return self.attribute_bindings(node) if isinstance(node, ast.Attribute) else []

    def attribute_bindings(self, node: ast.Attribute) -> list[Binding]:
        """Bindings of ``self.x`` or ``Class.x`` in this file, through base classes of the same file."""
        if not isinstance(node.value, ast.Name):
            return []
        return self._attribute_of_name(node.value, node.attr)

    def _attribute_of_name(self, node: ast.Name, attribute: str) -> list[Binding]:
        scope = self._scopes.scope_of(node)
        key = (scope, node.id)
        if key not in self._classes:
            cls: ast.AST | None = self._scopes.owner(node)
            if cls is None:
                found = self._scopes.lookup(node.id, node)
                cls = found[0].node if len(found) == 1 else None
            self._classes[key] = cls if isinstance(cls, ast.ClassDef) else None
        cls_ = self._classes[key]
        if cls_ is None:
            return []
        place = (cls_, attribute)
        if place not in self._attributes:
            self._attributes[place] = self._class_attribute(cls_, attribute, 0)
        return self._attributes[place]

    def _class_attribute(self, cls: ast.ClassDef, name: str, depth: int) -> list[Binding]:
        found = self._scopes.attribute(cls, name)
        if found or depth > _DEPTH:
            return found
        for base in self.bases(cls):
            found = self._class_attribute(base, name, depth + 1)
            if found:
                return found
        return []

    def bases(self, cls: ast.ClassDef) -> list[ast.ClassDef]:
        """Base classes that are defined in this file."""
        found = []
        for base in cls.bases:
            bindings = self._scopes.lookup(base.id, cls) if isinstance(base, ast.Name) else []
            found += [binding.node for binding in bindings if isinstance(binding.node, ast.ClassDef)]
        return [base for base in found if base is not cls]

    def values(self, node: ast.expr, depth: int = 0) -> list[ast.expr]:
        """Expressions that the node may be, following names and attributes that are bound in this file.

        A leaf that cannot be followed (parameter, loop variable, import) stays as it is, so a caller sees a Name or
        Attribute there. Both arms of a conditional expression and both sides of ``or`` are returned.
        """
        if depth > _VALUE_DEPTH:
            return [node]
        if node not in self._values:
            self._values[node] = [node]  # what is defined by itself is a leaf
            found = list(dict.fromkeys(self._follow(node, depth)))
            self._values[node] = found if len(found) <= _MAX_VALUES else [node]
        return self._values[node]

    def _follow(self, node: ast.expr, depth: int) -> list[ast.expr]:
        match node:
            case ast.Name():
                return self._bound_values(node, self._scopes.lookup(node.id, node), depth)
            case ast.Attribute():
                return self._bound_values(node, self.attribute_bindings(node), depth)
            case ast.IfExp(body=body, orelse=orelse):
                return [*self.values(body, depth + 1), *self.values(orelse, depth + 1)]
            case ast.BoolOp(op=ast.Or(), values=parts):
                return [leaf for part in parts for leaf in self.values(part, depth + 1)]
            case ast.NamedExpr(value=value):
                return self.values(value, depth + 1)
            case ast.Subscript(value=container):
                return self._item_values(node, container, depth)
            case ast.Call():
                return self._returned(node, depth)
        return [node]

    def _bound_values(self, node: ast.expr, bindings: list[Binding], depth: int) -> list[ast.expr]:
        if not bindings or any(binding.kind != "assign" or binding.value is None for binding in bindings):
            return [node]
        leaves: list[ast.expr] = []
        for binding in bindings:
            assert binding.value is not None
            if binding.value is not node:
                leaves.extend(self.values(binding.value, depth + 1))
        return leaves or [node]

    def _item_values(self, node: ast.Subscript, container: ast.expr, depth: int) -> list[ast.expr]:
        leaves: list[ast.expr] = []
        for holder in self.values(container, depth + 1):
            if not isinstance(holder, ast.Dict) or None in holder.keys:
                return [node]
            chosen = [
                value
                for key, value in zip(holder.keys, holder.values, strict=True)
                if not isinstance(node.slice, ast.Constant)
                or not isinstance(key, ast.Constant)
                or key.value == node.slice.value
            ]
            for value in chosen:
                leaves.extend(self.values(value, depth + 1))
        return leaves or [node]

    def _returned(self, call: ast.Call, depth: int) -> list[ast.expr]:
        function = self.definition(call.func, depth + 1)
        if function is None or isinstance(function, ast.AsyncFunctionDef):
            return [call]
        returns = _returned_expressions(function)
        leaves = [leaf for value in returns for leaf in self.values(value, depth + 1)]
        return leaves or [call]

    def definition(self, func: ast.expr, depth: int = 0) -> FunctionNode | None:
        """The function or method of this file that a call's ``func`` names; None when there is not exactly one."""
        if func not in self._definitions:
            self._definitions[func] = None
            bindings = self.bindings(func)
            if not bindings and isinstance(func, ast.Attribute) and not self.is_foreign(func):
                bindings = self._method_bindings(func.value, func.attr, depth)
            self._definitions[func] = _only_function(bindings)
        return self._definitions[func]

    def method_of(self, node: ast.expr, method: str) -> FunctionNode | None:
        """What ``node.method`` names, for a class of this file, ``self``, or an object that such a class makes."""
        bindings: list[Binding] = []
        if isinstance(node, ast.Name):
            bindings = self._attribute_of_name(node, method)
        return _only_function(bindings or self._method_bindings(node, method, 0))

    def _method_bindings(self, instance: ast.expr, method: str, depth: int) -> list[Binding]:
        """Bindings of ``x.method`` where x is made by calling a class of this file."""
        found: list[Binding] = []
        for leaf in self.values(instance, depth + 1):
            maker = leaf.func if isinstance(leaf, ast.Call) else None
            classes = self._scopes.lookup(maker.id, maker) if isinstance(maker, ast.Name) else []
            for binding in classes:
                if isinstance(binding.node, ast.ClassDef):
                    found += self._class_attribute(binding.node, method, 0)
        return found

    def is_foreign(self, node: ast.expr) -> bool:
        """Whether the expression is an imported module or something in one: nothing that this file defines."""
        while isinstance(node, ast.Attribute):
            node = node.value
        if not isinstance(node, ast.Name):
            return False
        bindings = self._scopes.lookup(node.id, node)
        return bool(bindings) and all(binding.kind == "import" for binding in bindings)


def _only_function(bindings: list[Binding]) -> FunctionNode | None:
    node = bindings[0].node if len(bindings) == 1 else None
    return node if isinstance(node, FUNCTIONS) else None


def _returned_expressions(function: FunctionNode) -> list[ast.expr]:
    """What a short function without a generator returns; [] when it is long or yields (a context manager, say)."""
    found: list[ast.expr] = []
    stack: list[ast.AST] = list(function.body)
    budget = 200
    while stack:
        node = stack.pop()
        budget -= 1
        if budget < 0 or isinstance(node, ast.Yield | ast.YieldFrom):
            return []
        if isinstance(node, ast.Return) and node.value is not None:
            found.append(node.value)
        if not isinstance(node, (*FUNCTIONS, ast.Lambda, ast.ClassDef)):
            stack.extend(ast.iter_child_nodes(node))
    return found
