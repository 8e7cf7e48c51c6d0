"""The export frontend: torch.export of model and loss in one graph, its nodes stamped with the calls that made them."""

from __future__ import annotations

import contextlib
import io
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from amptune.capture.calls import Call, CallRecorder
from amptune.capture.casts import call_visibly
from amptune.capture.cost import gemms_of
from amptune.capture.fakes import map_tensors
from amptune.capture.forward import Prepared, run
from amptune.capture.functions import FunctionCall
from amptune.capture.modulestack import ModuleStack
from amptune.capture.names import op_name, spelling_of
from amptune.capture.record import attribute_name
from amptune.capture.target import tensors_in
from amptune.capture.usercode import TORCH_FOLDER
from amptune.capture.where import Place

_DROPPED = {
    torch.ops.aten._assert_tensor_metadata.default,
    torch.ops.aten._assert_async.msg,
    torch.ops.aten._assert_scalar.default,
    torch.ops.aten.sym_constrain_range_for_size.default,
}


class Stamper(CallRecorder):
    """Marks every node that a call adds to the graph under export."""

    has_loss = False
    reads_data = False
    """Whether ``x.data`` was read or set, which torch.export does not follow: what it gives is a constant there."""

    def __init__(self, stack: ModuleStack) -> None:
        super().__init__(stack)
        self.functions.finished = self._function_finished

    def _function_finished(self, custom: FunctionCall, result: Any) -> None:
        """What comes out of a custom function has a gradient, which its parts have not."""
        mode = get_proxy_mode()
        trained = any(tensor.requires_grad for tensor in tensors_in(result))
        for node in reversed(mode.tracer.graph.nodes) if mode is not None else ():
            call = node.meta.get("amptune_call")
            if call is None or call.custom is not custom:
                break
            node.meta["amptune_trained"] = trained

    def on_call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call, and mark the nodes that it adds."""
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **kwargs)
        self.reads_data = self.reads_data or spelling_of(func) == "data"
        root = mode.tracer.graph._root
        before = root._prev
        result = call_visibly(func, args, kwargs)
        if root._prev is before:
            return result
        call = self.call_of(func, args, kwargs, result)
        changed = args[:1] if result is None else ()  # x[i] = y gives nothing back, and x has a gradient then
        trained = any(tensor.requires_grad for tensor in tensors_in((result, changed)))
        node = root._prev
        while node is not before:
            node.meta.setdefault("amptune_call", call)
            node.meta.setdefault("amptune_trained", trained)
            if call.does_nothing:
                node.meta["amptune_alias"] = True
            node = node._prev
        return result


class _Whole(nn.Module):
    """Model and loss as one module that takes the batch's tensors one by one."""

    def __init__(self, prepared: Prepared, stamper: Stamper) -> None:
        super().__init__()
        self.model = prepared.model
        self._stamper, self._target = stamper, prepared.target
        self._batch = [prepared.batch]  # in a list, so that torch.export does not look into it

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        left = dict(zip((id(tensor) for tensor in _distinct(self._batch[0])), tensors, strict=True))
        batch = map_tensors(self._batch[0], lambda tensor: left[id(tensor)])
        prepared = Prepared(self._target, self.model, batch)
        outputs, self._stamper.has_loss = run(prepared, self._stamper)
        return tuple(outputs)


def _distinct(batch: Any) -> list[torch.Tensor]:
    return list({id(tensor): tensor for tensor in tensors_in(batch)}.values())


def export(prepared: Prepared, stamper: Stamper) -> tuple[fx.GraphModule, bool]:
    """Export the model (and loss) of ``prepared``, which holds fake tensors.

    Returns:
        The graph with nested regions inlined and parameters as ``get_attr`` nodes; whether it holds the user's loss.

    Raises:
        Exception: whatever torch.export raises for what it cannot trace.
    """
    whole = _Whole(prepared, stamper)
    # What torch.export cannot trace it also prints, graph by graph.
    with _eager_answers(), contextlib.redirect_stderr(io.StringIO()):
        program = torch.export.export(whole, tuple(_distinct(prepared.batch)), strict=False)
    if any(_has_unknown_extent(node) for node in program.graph.nodes):
        raise RuntimeError("a shape depends on the data")  # as of a batch's mask, which a recorded forward knows
    if stamper.reads_data:
        raise RuntimeError("the forward reads or sets .data")  # which a recorded forward follows
    return _Inliner(program).module(), stamper.has_loss


def _has_unknown_extent(node: fx.Node) -> bool:
    return any(not isinstance(extent, int) for tensor in tensors_in(node.meta.get("val")) for extent in tensor.shape)


@contextlib.contextmanager
def _eager_answers() -> Iterator[None]:
    """Tell the model's code, but not torch's, that nothing is being compiled: the path of a training step is wanted."""
    names = ("is_compiling", "is_dynamo_compiling", "is_exporting")
    kept = {name: getattr(torch.compiler, name) for name in names if hasattr(torch.compiler, name)}

    def answer(name: str) -> bool:
        is_torch = sys._getframe(2).f_code.co_filename.startswith(TORCH_FOLDER)
        return bool(kept[name]()) if is_torch else False

    for name in kept:
        setattr(torch.compiler, name, lambda name=name: answer(name))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch.compiler, name, function)


class _Inliner:
    """Copies an exported graph into a plain one."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.attributes: dict[str, Any] = {}
        self._hidden = 0

    def module(self) -> fx.GraphModule:
        """The plain graph module."""
        env: dict[fx.Node, Any] = {}
        kinds = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        for node in self.program.graph.find_nodes(op="placeholder"):
            env[node] = self._input(node, kinds[node.name])
        outputs = self._body(self.program.graph_module, env)
        count = len(self.program.graph_signature.user_outputs)
        self.graph.output(tuple(outputs[len(outputs) - count :]))
        return fx.GraphModule(self.attributes, self.graph)

    def _input(self, node: fx.Node, spec: Any) -> fx.Node:
        if spec.kind is InputKind.USER_INPUT:
            new = self.graph.placeholder(node.name)
        else:
            name = str(spec.target).removeprefix("model.")
            target = attribute_name(name)
            self.attributes[target] = self._stored(spec)
            new = self.graph.get_attr(target)
            new.meta["amptune_op"] = "get_attr"
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                new.meta["amptune_stored"] = name
        new.meta["val"] = value = node.meta.get("val")
        new.meta["amptune_trained"] = bool(getattr(self.attributes.get(str(new.target), value), "requires_grad", False))
        return new

    def _stored(self, spec: Any) -> Any:
        found = self.program.state_dict.get(spec.target)
        return self.program.constants.get(spec.target) if found is None else found

    def _body(self, module: fx.GraphModule, env: dict[fx.Node, Any]) -> list[Any]:
        """Copy all but the placeholders; returns what the output node carries."""
        for node in module.graph.nodes:
            if node.op == "output":
                return list(_flat(fx.map_arg(node.args[0], lambda n: env[n])))
            if node.op == "placeholder" or node.target in _DROPPED:
                continue
            env[node] = self._copy(module, node, env)
        raise AssertionError("an fx graph ends with an output node")

    def _copy(self, module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(module)
            if isinstance(value, fx.GraphModule):
                return value
            self.attributes[str(node.target)] = value
        args = [_mapped(argument, env) for argument in node.args]
        inner = next((argument for argument in args if isinstance(argument, fx.GraphModule)), None)
        if inner is not None:
            inputs = args[args.index(inner) + 1 :]
            places = inner.graph.find_nodes(op="placeholder")
            return self._body(inner, dict(zip(places, inputs, strict=True)))
        if node.target is operator.getitem and isinstance(args[0], list):
            return args[0][args[1]]  # of a region that was inlined
        return self._copied(node, env)

    def _copied(self, node: fx.Node, env: dict[fx.Node, Any]) -> fx.Node:
        new = self.graph.node_copy(node, lambda n: env[n])
        name = op_name(node.target, node.args) if callable(node.target) else "get_attr"
        name = "alias" if node.meta.get("amptune_alias") else name
        new.meta["amptune_op"] = name
        if node.op == "call_function" and "amptune_call" not in new.meta:
            self._hidden += 1
            new.meta["amptune_call"] = _hidden_call(node, name, -self._hidden)
        written = _written(node)
        if written:
            new.meta["amptune_writes"] = tuple(env[each] for each in written)
        return new


def _hidden_call(node: fx.Node, op: str, number: int) -> Call:
    """The call of a node that came about without a torch function, as under ``DisableTorchFunction``."""
    modules = list(node.meta.get("nn_module_stack", {}).values()) or [("", "")]
    path, kind = modules[-1]
    holder = str(path).removeprefix("model").removeprefix(".")
    gemms = gemms_of(op, node.args, node.kwargs, node.meta.get("val"))
    return Call(number, op, Place(None, None), holder, str(kind), None, None, gemms=gemms)


def _mapped(value: Any, env: Mapping[fx.Node, Any]) -> Any:
    return env[value] if isinstance(value, fx.Node) else value


def _flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [item for part in value for item in _flat(part)]
    return [value]


def _written(node: fx.Node) -> list[fx.Node]:
    """The tensors that an in-place overload changes."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found: list[fx.Node] = []
    for place, argument in enumerate(schema.arguments):
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += [each for each in _flat(value) if isinstance(each, fx.Node)]
    return found
