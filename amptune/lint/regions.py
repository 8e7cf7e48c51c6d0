"""Which autocast and no_grad regions an expression runs in, by ``with`` stacks and decorators."""

from __future__ import annotations

import ast
import dataclasses
from functools import cached_property
from typing import Literal

from amptune.lint.fold import UNKNOWN, UNKNOWN_DTYPE, Folder
from amptune.lint.index import FUNCTIONS, TreeIndex
from amptune.lint.names import Names

RegionKind = Literal["autocast", "no_grad", "enable_grad", "other"]

AUTOCAST_DEVICE: dict[str, str | None] = {
    "torch.amp.autocast": None,
    "torch.cuda.amp.autocast": "cuda",
    "torch.cpu.amp.autocast": "cpu",
    "torch.xpu.amp.autocast": "xpu",
    "torch.npu.amp.autocast": "npu",
    "torch_npu.npu.amp.autocast": "npu",
    "torch_xla.amp.autocast": "xla",
}
_NO_GRAD = frozenset(
    {"torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad", "torch.autograd.inference_mode"}
)
_ENABLE_GRAD = frozenset({"torch.enable_grad", "torch.autograd.enable_grad"})
_DEFAULT_DTYPE = {
    "cuda": "float16", "cpu": "bfloat16", "xpu": "float16", "mps": "float16", "npu": "float16", "mtia": "float16",
    "hpu": "bfloat16", "xla": "bfloat16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
    """One ``with`` item or decorator that is in force at a node.

    Attributes:
        node: the With statement, or the decorated function.
        call: the expression that makes the context (after following names), usually a Call.
        certain: False when the context may also be something else, such as ``nullcontext()``.
        device: "cuda", "cpu", ... or None when it is decided at run time. Autocast only, like those below.
        dtypes: dtypes that autocast may use; "?" when not known.
        enabled: True, False, or None when it is decided at run time (``enabled_by`` is that expression).
    """

    kind: RegionKind
    node: ast.AST
    call: ast.expr
    certain: bool = True
    device: str | None = None
    dtypes: frozenset[str] = frozenset()
    enabled: bool | None = True
    enabled_by: ast.expr | None = None


class Regions:
    """Region stacks of one file.

    ``has_autocast``: whether the word is in the file at all; where it is not, no call needs to be looked at.
    """

    def __init__(self, index: TreeIndex, names: Names, folder: Folder, has_autocast: bool = True) -> None:
        self._index = index
        self._has_autocast = has_autocast
        self._names = names
        self._folder = folder
        self._made: dict[tuple[ast.expr, ast.AST], Region] = {}

    def of(self, node: ast.AST) -> list[Region]:
        """Regions around the node in its own function, innermost first, decorators of that function last."""
        found: list[Region] = []
        child = node
        for ancestor in self._index.ancestors(node):
            if isinstance(ancestor, ast.With | ast.AsyncWith) and child in ancestor.body:
                found += [self._region(entered, ancestor) for entered in _entered(ancestor, child)]
                found += [self._region(item.context_expr, ancestor) for item in reversed(ancestor.items)]
            elif isinstance(ancestor, ast.withitem):
                owner = self._index.parent(ancestor)
                assert isinstance(owner, ast.With | ast.AsyncWith)
                earlier = owner.items[: owner.items.index(ancestor)]
                found += [self._region(item.context_expr, owner) for item in reversed(earlier)]
            elif isinstance(ancestor, FUNCTIONS) and child in ancestor.body:
                found += [self._region(item, ancestor) for item in reversed(ancestor.decorator_list)]
                break
            elif isinstance(ancestor, ast.Lambda | ast.ClassDef):
                break
            child = ancestor
        return found

    def autocast(self, node: ast.AST) -> Region | None:
        """The innermost autocast region around the node, also one that is switched off (see ``enabled``)."""
        return next((region for region in self.of(node) if region.kind == "autocast"), None)

    def in_autocast(self, node: ast.AST) -> bool:
        """Whether autocast is, or may be, on at the node: inside a region not constantly ``enabled=False``."""
        region = self.autocast(node)
        return region is not None and region.enabled is not False

    def no_grad(self, node: ast.AST) -> bool:
        """Whether gradients are off at the node: no_grad or inference_mode around it with no enable_grad between."""
        kinds = (
            region.kind for region in self.of(node) if region.kind in ("no_grad", "enable_grad") and region.certain
        )
        return next(kinds, "enable_grad") == "no_grad"

    def autocasts(self) -> list[Region]:
        """Every autocast that the file makes from torch, wherever it is entered; ``node`` is the call itself."""
        return self._autocasts

    @cached_property
    def _autocasts(self) -> list[Region]:
        calls = self._index.nodes(ast.Call) if self._has_autocast else []
        regions = [self.as_region(call) for call in calls if self._is_autocast_call(call)]
        return [region for region in regions if region.kind == "autocast"]

    def _is_autocast_call(self, call: ast.Call) -> bool:
        return any(name in AUTOCAST_DEVICE for func, _ in self._callees(call) for name in self._names.qualified(func))

    def as_region(self, expression: ast.expr) -> Region:
        """What a context expression is, wherever it stands."""
        return self._region(expression, expression)

    def _region(self, expression: ast.expr, node: ast.AST) -> Region:
        key = (expression, node)
        if key not in self._made:
            self._made[key] = self._classify(expression, node)
        return self._made[key]

    def _classify(self, expression: ast.expr, node: ast.AST) -> Region:
        leaves = self._names.values(expression)
        regions = [self._leaf(leaf, node) for leaf in leaves]
        autocasts = [region for region in regions if region.kind == "autocast"]
        chosen = autocasts[0] if autocasts else regions[0]
        if len(autocasts) > 1:
            chosen = _merged(autocasts)
        certain = all(region.kind == chosen.kind for region in regions)
        return chosen if certain else dataclasses.replace(chosen, certain=False)

    def _leaf(self, leaf: ast.expr, node: ast.AST) -> Region:
        """The region that one expression makes; uncertain when what it calls may be something else as well."""
        regions = [self._made_by(func, call, leaf, node) for func, call in self._callees(leaf)]
        found = next((region for region in regions if region.kind != "other"), regions[0])
        certain = all(region.kind == found.kind for region in regions)
        return found if certain else dataclasses.replace(found, certain=False)

    def _made_by(self, func: ast.expr, call: ast.Call | None, leaf: ast.expr, node: ast.AST) -> Region:
        names = self._names.qualified(func)
        for name in names:
            region = self._named(name, call, leaf, node)
            if region is not None:
                others = any(self._named(other, call, leaf, node) is None for other in names)
                return dataclasses.replace(region, certain=False) if others else region
        if isinstance(func, ast.Attribute) and func.attr in ("autocast", "maybe_autocast", "autocast_context"):
            # accelerator.autocast(), fabric.autocast() and the like: on or off by the framework's settings
            return Region("autocast", node, leaf, dtypes=frozenset({UNKNOWN_DTYPE}), enabled=None)
        return Region("other", node, leaf)

    def _named(self, name: str, call: ast.Call | None, leaf: ast.expr, node: ast.AST) -> Region | None:
        if name in AUTOCAST_DEVICE:
            return self._autocast_region(leaf, call, AUTOCAST_DEVICE[name], node)
        if name in _NO_GRAD:
            return Region("no_grad", node, leaf)
        if name in _ENABLE_GRAD:
            return Region("enable_grad", node, leaf)
        if name == "torch.set_grad_enabled" and call and call.args:
            mode = self._folder.constant(call.args[0])
            kind: RegionKind = "other" if mode is UNKNOWN else "enable_grad" if mode else "no_grad"
            return Region(kind, node, leaf)
        return None

    def _callees(self, leaf: ast.expr) -> list[tuple[ast.expr, ast.Call | None]]:
        """What may be called to make the context; looks through a stored ``functools.partial``."""
        if not isinstance(leaf, ast.Call):
            return [(leaf, None)]
        if not isinstance(leaf.func, ast.Name | ast.Attribute | ast.IfExp | ast.Call):
            return [(leaf.func, leaf)]
        found: list[tuple[ast.expr, ast.Call | None]] = []
        for value in self._names.values(leaf.func):
            if isinstance(value, ast.Call) and value.args and "functools.partial" in self._names.qualified(value.func):
                merged = ast.Call(value.args[0], [*value.args[1:], *leaf.args], [*value.keywords, *leaf.keywords])
                found.append((value.args[0], merged))
            else:
                found.append((value, leaf))
        return found

    def _autocast_region(self, leaf: ast.expr, call: ast.Call | None, device: str | None, node: ast.AST) -> Region:
        if call is None:
            return Region("autocast", node, leaf, device=device, dtypes=_default_dtypes(device))
        places = ("device_type", "dtype", "enabled") if device is None else ("enabled", "dtype")
        found = {place: _argument(call, place, position) for position, place in enumerate(places)}
        if device is None:
            device = self._device(found["device_type"])
        dtypes = self._folder.dtypes(found["dtype"]) or _default_dtypes(device)
        enabled: bool | None = True
        if found["enabled"] is not None:
            value = self._folder.constant(found["enabled"])
            enabled = None if value is UNKNOWN else bool(value)
        return Region("autocast", node, leaf, True, device, dtypes, enabled, found["enabled"])

    def _device(self, expression: ast.expr | None) -> str | None:
        value = self._folder.constant(expression)
        return value.partition(":")[0] if isinstance(value, str) else None


def _entered(node: ast.With | ast.AsyncWith, child: ast.AST) -> list[ast.expr]:
    """Contexts that an ExitStack of a with statement has entered before one of its statements, the last one first."""
    stacks = {item.optional_vars.id for item in node.items if isinstance(item.optional_vars, ast.Name)}
    found: list[ast.expr] = []
    for statement in node.body if stacks else ():
        if statement is child:
            break
        call = statement.value if isinstance(statement, ast.Expr | ast.Assign) else None
        match call:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="enter_context"), args=[entered, *_]):
                found += [entered] if name in stacks else []
    return found[::-1]


def _argument(call: ast.Call, name: str, position: int) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    plain = position < len(call.args) and not any(isinstance(arg, ast.Starred) for arg in call.args[: position + 1])
    return call.args[position] if plain else None


def _default_dtypes(device: str | None) -> frozenset[str]:
    return frozenset({_DEFAULT_DTYPE.get(device or "", UNKNOWN_DTYPE)})


def _merged(regions: list[Region]) -> Region:
    """One region for a context that is one of several autocasts."""
    first = regions[0]
    same_device = all(region.device == first.device for region in regions)
    same_enabled = all(region.enabled == first.enabled for region in regions)
    return dataclasses.replace(
        first,
        device=first.device if same_device else None,
        enabled=first.enabled if same_enabled else None,
        dtypes=frozenset().union(*(region.dtypes for region in regions)),
    )
