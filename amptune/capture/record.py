"""The recorded frontends: one forward runs, and each torch function call becomes a node of a torch.fx graph."""

from __future__ import annotations

import dataclasses
import functools
import keyword
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from amptune.capture.calls import Call, CallRecorder
from amptune.capture.casts import call_visibly
from amptune.capture.functions import FunctionCall
from amptune.capture.modulestack import ModuleCall, ModuleStack
from amptune.capture.names import spelling_of, written_by
from amptune.capture.target import tensors_in
from amptune.errors import CaptureError

_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format, type(...))
_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__invert__": operator.invert,
}


SAID_EVERY = 20_000
"""Calls after which a recorder says how far it is: some seconds."""


def opaque(name: str, tensors: list[torch.Tensor]) -> Any:
    """Stands in the graph for code that cannot be seen: what ``name`` reads."""
    raise NotImplementedError(f"{name} was recorded without its inside")


class RecordedModule(fx.GraphModule):
    """A graph module whose code is written when it is first called: most are only looked at, and the code of a long
    loop takes seconds, and more memory than its graph."""

    def recompile(self) -> Any:
        """Leave the code as it is until it is asked for."""

    def forward(self, *inputs: Any) -> Any:
        """Run the graph; the code that is written here takes this place."""
        super().recompile()
        return type(self).forward(self, *inputs)


class GraphRecorder(CallRecorder):
    """Builds an fx graph of the calls that make or change a tensor.

    Nodes carry ``meta["val"]`` (a tensor of device meta with shape, stride and dtype, or a tuple of them),
    ``meta["amptune_op"]``, ``meta["amptune_call"]``, ``meta["amptune_stored"]`` (the ``state_dict`` name of what a
    ``get_attr`` reads) and ``meta["amptune_writes"]`` (the nodes whose tensors a call changed).

    Attributes:
        say: told now and then how far a long run is.
    """

    def __init__(self, model: nn.Module, stack: ModuleStack) -> None:
        super().__init__(stack)
        self.graph = fx.Graph()
        self.constants: dict[str, Any] = {}
        self.say: Callable[[str], None] = lambda text: None
        self._model = model
        self._nodes: dict[int, fx.Node] = {}
        self._unpacked: dict[int, tuple[fx.Node, int]] = {}
        self._kept: list[torch.Tensor] = []  # an id is good only as long as its tensor lives
        self._names = {id(tensor): name for name, tensor in _named_tensors(model)}
        stack.finished = self._module_finished
        self.functions.started = self._function_started
        self.functions.finished = self._function_finished

    def add_input(self, name: str, tensor: torch.Tensor) -> None:
        """Make a placeholder for a tensor of the batch."""
        node = self.graph.placeholder(name)
        node.meta["val"] = summary(tensor)
        self._know(tensor, node)

    def module(self, outputs: list[torch.Tensor]) -> fx.GraphModule:
        """The recorded graph, ending with what the model (or its loss) returned."""
        self.graph.output(tuple(self._node_of(tensor) for tensor in outputs))
        stored = {node.meta["amptune_stored"] for node in self.graph.nodes if "amptune_stored" in node.meta}
        tensors = {attribute_name(name): tensor for name, tensor in _named_tensors(self._model) if name in stored}
        return RecordedModule(self.constants | tensors, self.graph)

    def on_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the call and add a node, if it gave or changed a tensor."""
        result = self.execute(func, args, kwargs)
        changed = written_by(func, args, kwargs)
        if not changed and any(result is argument for argument in args):
            return result  # contiguous() of what is contiguous
        outputs = [] if isinstance(result, torch.Size) else list(tensors_in(result))
        if outputs or changed:
            self._record(func, args, kwargs, result, outputs, changed)
        return result

    def execute(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call, so that casts which change nothing can be seen."""
        return call_visibly(func, args, kwargs)

    def _record(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any,
        outputs: list[torch.Tensor], changed: Sequence[torch.Tensor],
    ) -> None:  # fmt: skip
        node = self._node(func, args, kwargs)
        node.meta["amptune_call"] = call = self.call_of(func, args, kwargs, result)
        node.meta["amptune_op"] = call.op
        if call.number % SAID_EVERY == 0:
            self.say(f"{call.number:,} calls recorded so far{f', now in {call.holder}' if call.holder else ''}")
        if changed:
            node.meta["amptune_writes"] = tuple(self._node_of(each) for each in changed)
            node.meta["amptune_trained"] = any(each.requires_grad for each in changed)
        if isinstance(result, torch.Tensor):
            node.meta["val"] = summary(result)
            self._know(result, node)
            return
        self._unpack(node, outputs)

    def _unpack(self, node: fx.Node, outputs: list[torch.Tensor]) -> None:
        """The node gives several tensors, read by ``getitem`` where they are used."""
        node.meta["val"] = tuple(summary(tensor) for tensor in outputs)
        for index, tensor in enumerate(outputs):
            if id(tensor) not in self._nodes:
                self._unpacked[id(tensor)] = (node, index)
                self._kept.append(tensor)

    def _module_finished(self, entry: ModuleCall, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Outputs that no recorded call made (scripted code, an extension) come from the module as a whole."""
        unknown = [tensor for tensor in tensors_in(result) if not self._is_known(tensor)]
        if not unknown or self.stack.leaf is not None:
            return
        node = self.graph.call_function(opaque, (entry.type_name, self._argument([*tensors_in((args, kwargs))])))
        node.meta["amptune_op"] = op = entry.type_name.rpartition(".")[2]
        leaf = dataclasses.replace(entry, leaf=True)
        call = Call(len(self.calls) + 1, op, entry.place, entry.path, entry.type_name, leaf, self.regions.current)
        self.calls.append(call)
        node.meta["amptune_call"] = call
        self._unpack(node, unknown)

    def _function_started(self, custom: FunctionCall, args: tuple[Any, ...]) -> None:
        """A custom function reads all its tensors, also those that only its kernel touches."""
        tensors = list(tensors_in(args))
        if tensors and custom is self.functions.outermost:
            node = self.graph.call_function(opaque, (custom.name, self._argument(tensors)))
            node.meta["amptune_op"] = custom.name
            node.meta["val"] = ()
            node.meta["amptune_call"] = self.call_of(opaque, (), {}, None)

    def _function_finished(self, custom: FunctionCall, result: Any) -> None:
        """What comes out of a custom function has a gradient, which its parts have not."""
        for tensor in tensors_in(result):
            if id(tensor) in self._nodes:
                self._nodes[id(tensor)].meta["val"] = summary(tensor)

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._nodes or id(tensor) in self._unpacked or id(tensor) in self._names

    def _node(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        spelling = spelling_of(func)
        fx_args, fx_kwargs = self._argument(args), self._argument(kwargs)
        if getattr(func, "__name__", "") == "__get__":
            return self.graph.call_function(getattr, (fx_args[0], spelling))
        if getattr(func, "__name__", "") == "__set__":
            return self.graph.call_function(setattr, (fx_args[0], spelling, *fx_args[1:]))
        if spelling in _OPERATORS:
            return self.graph.call_function(_OPERATORS[spelling], fx_args, fx_kwargs)
        if getattr(torch.Tensor, spelling, None) is func and fx_args:
            return self.graph.call_method(spelling, fx_args, fx_kwargs)
        return self.graph.call_function(func, fx_args, fx_kwargs)

    def _know(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._unpacked.pop(id(tensor), None)
        self._kept.append(tensor)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._node_of(value)
        if isinstance(value, dict):
            return {str(key): self._argument(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            items = [self._argument(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, slice):
            return slice(self._argument(value.start), self._argument(value.stop), self._argument(value.step))
        return value if isinstance(value, _PLAIN) else self._constant(value)

    def _node_of(self, tensor: torch.Tensor) -> fx.Node:
        known = self._nodes.get(id(tensor))
        if known is not None:
            return known
        if id(tensor) in self._unpacked:
            source, index = self._unpacked[id(tensor)]
            node = self.graph.call_function(operator.getitem, (source, index))
            node.meta["amptune_op"] = "getitem"
            node.meta["amptune_call"] = source.meta["amptune_call"]
        else:
            node = self._stored(tensor)
        node.meta["val"] = summary(tensor)
        self._know(tensor, node)
        return node

    def _stored(self, tensor: torch.Tensor) -> fx.Node:
        """A parameter or buffer of the model; or a tensor that no recorded call made, kept as a constant."""
        name = self._names.get(id(tensor)) or self._late_name(tensor)
        if name is None:
            return self._constant(tensor)
        node = self.graph.get_attr(attribute_name(name))
        node.meta["amptune_op"] = "get_attr"
        node.meta["amptune_stored"] = name
        return node

    def _late_name(self, tensor: torch.Tensor) -> str | None:
        """The name of what a lazy layer has made meanwhile."""
        if isinstance(tensor, nn.Parameter):
            self._names |= {id(known): name for name, known in _named_tensors(self._model)}
        return self._names.get(id(tensor))

    def _constant(self, value: Any) -> fx.Node:
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = value
        node = self.graph.get_attr(name)
        node.meta["amptune_op"] = "get_attr"
        return node


def attribute_name(name: str) -> str:
    """Where a graph module keeps a tensor of the model: under its own name, unless ``fx.GraphModule`` has that name for
    something else, as it has ``code``, or cannot write it, as it cannot ``heads.class`` of a ModuleDict."""
    name = ".".join(f"stored_{part}" if keyword.iskeyword(part) else part for part in name.split("."))
    return f"stored_{name}" if hasattr(fx.GraphModule, name.partition(".")[0]) else name


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers; of a tied one the first name comes last, so that a dict keeps it."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return reversed(named)


def summary(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of device meta with the same shape, stride, dtype and requires_grad: what a node keeps of a value.

    Raises:
        CaptureError: it is a nested tensor, whose shape has no numbers.
    """
    if tensor.is_nested:
        raise CaptureError(
            "the model computes with nested tensors, which cannot be analyzed",
            hint="pad the samples to one length and mask what is beyond theirs",
        )
    with torch._C.DisableTorchFunction():
        stride = tensor.stride() if tensor.layout is torch.strided else None
        return _alike(tensor.shape, stride, tensor.dtype, tensor.requires_grad)


@functools.lru_cache(maxsize=4096)
def _alike(
    shape: torch.Size, stride: tuple[int, ...] | None, dtype: torch.dtype, requires_grad: bool
) -> torch.Tensor:  # fmt: skip
    """One tensor for all values that look alike: a long loop has few shapes, and nothing changes a summary."""
    if stride is None:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta", requires_grad=requires_grad)
