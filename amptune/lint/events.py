"""What happens to gradients: the calls that the order rules reason about."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Collection
from typing import Literal

from amptune.lint.index import FunctionNode, TreeIndex
from amptune.lint.kinds import Kinds
from amptune.lint.names import Names
from amptune.lint.words import Words

EventKind = Literal[
    "scale", "backward", "autograd_grad", "unscale", "clip", "step", "optimizer_step", "update", "get_scale",
    "zero_grad", "grad_read", "grad_write", "scheduler_step", "wrapper", "handed",
]  # fmt: skip
METHODS = frozenset(
    {"scale", "backward", "manual_backward", "unscale_", "step", "update", "get_scale", "zero_grad", "clip_grad_norm_",
     "clip_grad_value_", "clip_grad_norm", "clip_grads_with_norm_", "dispatch_clip_grad", "clip_gradients", "grad"}
)  # fmt: skip
_CLIPS = frozenset(
    {"clip_grad_norm_", "clip_grad_value_", "clip_grad_norm", "clip_grads_with_norm_", "dispatch_clip_grad",
     "clip_gradients"}
)  # fmt: skip


# Functions that get a scaler for another reason than to train with it.
_OTHER_USE = re.compile(
    r"save|load|resume|restore|checkpoint|ckpt|print|log|state|isinstance|attr|^(?:id|repr|type|len|dict|partial|bool)$|"
    r"register|add|append|^[A-Z]",
)


# What Words puts behind names of inlined calls and of outer functions.
_MARKS = re.compile(r"(?<=\w)[#@]\w+")


@dataclasses.dataclass(frozen=True, eq=False)
class Event:
    """One event in the flow of a function.

    Attributes:
        kind: ``step`` and ``update`` are the scaler's, ``optimizer_step`` is ``optimizer.step()``, ``zero_grad`` is
            also ``p.grad = None``, ``grad_write`` changes a gradient in place (by hand unscaled, averaged, clamped),
            ``wrapper`` is a call of a class that does several of these (NativeScaler), ``handed`` one of a function of
            another file that gets the scaler and may do any of them.
        node: the Call, or the ``.grad`` attribute.
        scaler: text of the scaler, in the words of the function whose flow this is: compare it, show ``scaler_name``.
        optimizer: text of the optimizer that is unscaled, stepped or cleared (shown: ``optimizer_name``).
        subject: text of the loss, the scheduler, or the parameters that are clipped (shown: ``subject_name``).
        scaled: of a backward: whether the loss went through ``scaler.scale``; None when the file does not tell.
        owner: "framework" when an accelerator, engine or trainer does the call and its scaling itself.
        function: the function that the call is written in; None at module level.
        calls: the calls through which a helper function was entered, outermost first.
    """

    kind: EventKind
    node: ast.expr
    scaler: str = ""
    optimizer: str = ""
    subject: str = ""
    scaled: bool | None = None
    owner: Literal["user", "framework"] = "user"
    function: FunctionNode | None = None
    calls: tuple[ast.Call, ...] = ()

    @property
    def scaler_name(self) -> str:
        """The scaler without what tells the locals of inlined helpers apart: for messages and for code."""
        return _shown(self.scaler)

    @property
    def optimizer_name(self) -> str:
        """The optimizer, likewise."""
        return _shown(self.optimizer)

    @property
    def subject_name(self) -> str:
        """The subject, likewise."""
        return _shown(self.subject)

    @property
    def receiver(self) -> ast.expr | None:
        """The object whose method is called: ``scaler`` of ``scaler.step(optimizer)``."""
        func = self.node.func if isinstance(self.node, ast.Call) else None
        return func.value if isinstance(func, ast.Attribute) else None


def _shown(text: str) -> str:
    return _MARKS.sub("", text)


class Classifier:
    """Turns a call or a ``.grad`` into an event."""

    def __init__(self, index: TreeIndex, names: Names, kinds: Kinds, aliases: Collection[str] = ()) -> None:
        """``aliases``: identifiers that may stand for a function of another name."""
        self._index = index
        self._aliases = aliases
        self._names = names
        self._kinds = kinds

    def may_be_event(self, node: ast.expr) -> bool:
        """A cheap test that keeps most nodes away from ``event``."""
        if isinstance(node, ast.Attribute):
            return node.attr == "grad" and not _is_existence_test(self._index, node)
        if not isinstance(node, ast.Call):
            return False
        func = node.func
        if isinstance(func, ast.Attribute) and func.attr in METHODS:
            return True
        if isinstance(func, ast.Name) and func.id in METHODS:
            return True
        name = func.id if isinstance(func, ast.Name) else func.attr if isinstance(func, ast.Attribute) else ""
        if name in self._aliases and any(last in _CLIPS or last == "grad" for last in self._last_names(func)):
            return True
        if _scaler_argument(node) is not None and not _OTHER_USE.search(name):
            return True
        return "scal" in name.lower() and self._kinds.of(func) == "wrapper_scaler"

    def _last_names(self, func: ast.expr) -> list[str]:
        return [name.rpartition(".")[2] for name in self._names.qualified(func)]

    def event(self, node: ast.expr, words: Words, calls: tuple[ast.Call, ...] = ()) -> Event | None:
        """The event that the node is, if it is one."""
        made = self._gradient(node) if isinstance(node, ast.Attribute) else None
        if isinstance(node, ast.Call):
            made = self._call(node, words)
        if made is None:
            return None
        return dataclasses.replace(made, function=self._index.function_of(node), calls=calls)

    def _gradient(self, node: ast.Attribute) -> Event | None:
        parent = self._index.parent(node)
        if isinstance(parent, ast.Call) and parent.func is node:
            return None  # torch.autograd.grad and its like are calls
        if "torch.autograd.grad" in self._names.qualified(node):
            return None
        if not isinstance(node.ctx, ast.Load):
            value = parent.value if isinstance(parent, ast.Assign | ast.AugAssign) else None
            cleared = isinstance(node.ctx, ast.Del) or (isinstance(value, ast.Constant) and value.value is None)
            return Event("zero_grad" if cleared else "grad_write", node)
        method = _method_on(self._index, node)
        if method in ("zero_", "detach_", "requires_grad_"):
            return Event("zero_grad", node) if method == "zero_" else None
        return Event("grad_write" if method.endswith("_") else "grad_read", node)

    def _call(self, call: ast.Call, words: Words) -> Event | None:
        func = call.func
        if isinstance(func, ast.Name | ast.Attribute) and self._kinds.of(func) == "wrapper_scaler":
            return Event("wrapper", call, scaler=words.text(func), optimizer=words.text(_first(call.args[1:])))
        names = self._names.qualified(func)
        if "torch.autograd.grad" in names:
            return Event("autograd_grad", call, subject=words.text(_first(call.args)))
        if "torch.autograd.backward" in names:
            return self._backward(call, _first(call.args), words)
        last = names[0].rpartition(".")[2] if names else func.id if isinstance(func, ast.Name) else ""
        if last in _CLIPS:
            return Event("clip", call, subject=words.text(_first_argument(call)))
        made = self._method(call, func, words) if isinstance(func, ast.Attribute) else None
        return made or self._handed(call, last or getattr(func, "attr", ""), words)

    def _handed(self, call: ast.Call, name: str, words: Words) -> Event | None:
        scaler = _scaler_argument(call)
        if scaler is None or _OTHER_USE.search(name) or self._names.definition(call.func) is not None:
            return None
        return Event("handed", call, scaler=words.text(scaler)) if self._kinds.of(scaler) == "scaler" else None

    def _method(self, call: ast.Call, func: ast.Attribute, words: Words) -> Event | None:
        receiver, method = func.value, func.attr
        if method in _CLIPS:
            return self._clip(call, receiver, words)
        if method in ("backward", "manual_backward"):
            return self._backward_method(call, receiver, method, words)
        if method == "unscale_":
            return Event("unscale", call, scaler=words.text(receiver), optimizer=words.text(_first_argument(call)))
        if method == "zero_grad":
            return Event("zero_grad", call, optimizer=words.text(receiver))
        if method in ("step", "update", "scale", "get_scale"):
            return self._protocol(call, receiver, method, words)
        return None

    def _protocol(self, call: ast.Call, receiver: ast.expr, method: str, words: Words) -> Event | None:
        kind = self._kinds.of(receiver)
        text, first = words.text(receiver), _first_argument(call)
        if kind == "scaler":
            match method:
                case "step":
                    return Event("step", call, scaler=text, optimizer=words.text(first))
                case "scale":
                    return Event("scale", call, scaler=text, subject=words.text(first)) if first else None
                case "update":
                    return Event("update", call, scaler=text)
            return Event("get_scale", call, scaler=text)
        if kind == "wrapper_scaler":
            return Event("wrapper", call, scaler=text)
        if method == "step" and kind == "optimizer":
            return Event("optimizer_step", call, optimizer=text)
        if method == "step" and kind == "scheduler":
            return Event("scheduler_step", call, subject=text)
        return None

    def _clip(self, call: ast.Call, receiver: ast.expr, words: Words) -> Event:
        owned = self._kinds.of(receiver) in ("accelerator", "engine") or self._is_framework(receiver)
        subject = words.text(_first_argument(call) if call.args else receiver)
        return Event("clip", call, subject=subject, owner="framework" if owned else "user")

    def _backward_method(self, call: ast.Call, receiver: ast.expr, method: str, words: Words) -> Event | None:
        if method == "manual_backward" or self._kinds.of(receiver) in ("accelerator", "engine"):
            return Event("backward", call, subject=words.text(_first_argument(call)), owner="framework")
        if isinstance(receiver, ast.Call) and self._names.qualified(receiver.func) == ("super",):
            return None
        if self._names.definition(call.func) is not None:
            return None  # a method of this file with that name: the flow enters it
        return self._backward(call, receiver, words)

    def _backward(self, call: ast.Call, loss: ast.expr | None, words: Words) -> Event:
        if loss is None:
            return Event("backward", call)
        leaves = self._names.values(loss)
        bound = [binding.value for binding in self._names.bindings(loss) if binding.value is not None]
        scalings = [leaf for leaf in (*leaves, *bound) if self.is_scaling(leaf)]
        subject = words.text(loss)
        if not scalings and ".scale(" in subject:  # an inlined helper was handed scaler.scale(loss)
            return Event("backward", call, subject=subject, scaled=True, scaler=subject.partition(".scale(")[0])
        if not scalings:
            unknown = any(leaf is loss and not isinstance(leaf, ast.Call) for leaf in leaves)
            return Event("backward", call, subject=subject, scaled=None if unknown else False)
        scaling = scalings[0]
        assert isinstance(scaling, ast.Call)
        receiver = scaling.func
        assert isinstance(receiver, ast.Attribute)
        return Event("backward", call, subject=subject, scaled=True, scaler=words.text(receiver.value))

    def is_scaling(self, node: ast.expr) -> bool:
        """Whether the expression is ``scaler.scale(...)``."""
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "scale":
            return False
        return self._kinds.of(node.func.value) in ("scaler", "wrapper_scaler")

    def makes_scaler(self, node: ast.Call) -> bool:
        """Whether the call makes a gradient scaler."""
        return self._kinds.is_scaler_constructor(node)

    def _is_framework(self, receiver: ast.expr) -> bool:
        """Whether the receiver is the trainer, or the self of a Lightning module."""
        if not isinstance(receiver, ast.Name):
            return isinstance(receiver, ast.Attribute) and receiver.attr == "trainer"
        cls = self._index.class_of(receiver)
        bases = [name for base in cls.bases for name in self._names.qualified(base)] if cls else []
        return any("lightning" in base.lower() for base in bases)


def _scaler_argument(call: ast.Call) -> ast.expr | None:
    """The argument of a call that is called a scaler."""
    for item in (*call.args, *(keyword.value for keyword in call.keywords)):
        name = item.id if isinstance(item, ast.Name) else item.attr if isinstance(item, ast.Attribute) else ""
        if "scaler" in name.lower():
            return item
    return None


def _first(items: list[ast.expr]) -> ast.expr | None:
    return items[0] if items else None


def _first_argument(call: ast.Call) -> ast.expr | None:
    return call.args[0] if call.args else call.keywords[0].value if call.keywords else None


def _method_on(index: TreeIndex, node: ast.Attribute) -> str:
    """The method called on a gradient: "mul_" of ``p.grad.data.mul_(x)``, "" when there is none."""
    parent = index.parent(node)
    while isinstance(parent, ast.Attribute) and parent.attr in ("data", "grad"):
        parent = index.parent(parent)
    if not isinstance(parent, ast.Attribute):
        return ""
    call = index.parent(parent)
    return parent.attr if isinstance(call, ast.Call) and call.func is parent else ""


def _is_existence_test(index: TreeIndex, node: ast.Attribute) -> bool:
    """Whether the gradient is only asked whether it is there: ``p.grad is None``."""
    parent = index.parent(node)
    if isinstance(parent, ast.Compare):
        return any(isinstance(other, ast.Constant) and other.value is None for other in parent.comparators)
    return isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not)
