"""A recorded forward and backward: which op ran in which dtypes, for which module."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from amptune import runtime
from amptune.capture.names import op_name
from amptune.capture.where import current_place
from amptune.core.graph import LOSS

Phase = Literal["forward", "backward"]
TOGETHER = "cast together"
"""Who reads the weights of a block when the runtime casts them at once, whether their modules are called or not."""

_GEMMS = frozenset({
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution", "convolution_backward",
    "_convolution", "linear", "linear_backward", "mkldnn_linear", "_trilinear", "_cudnn_rnn", "_cudnn_rnn_backward",
    "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "miopen_rnn", "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd", "_scaled_mm", "_scaled_mm_v2",
})  # fmt: skip
_ATTENTION = "_scaled_dot_product"
_SCALED = "_scaled_mm"
_MOVES = frozenset({
    "_to_copy", "copy_", "clone", "detach", "view", "_unsafe_view", "reshape", "expand", "permute", "transpose",
    "t", "slice", "select", "squeeze", "unsqueeze", "split", "cat", "stack", "alias", "as_strided", "empty",
    "empty_like", "zeros", "zeros_like", "new_empty", "new_zeros", "fill_", "zero_",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OpRun:
    """One aten op that ran.

    Attributes:
        op: its name, without namespace and overload.
        phase: part of the forward, or of the backward.
        path: the module whose forward made it, or in the backward the op that it differentiates; None where unknown.
        planned: the innermost running module that the plan names, which may hold ``path``.
        inputs, outputs: dtypes of floating tensors.
    """

    op: str
    phase: Phase
    path: str | None
    planned: str | None
    inputs: frozenset[torch.dtype]
    outputs: frozenset[torch.dtype]

    @property
    def is_gemm(self) -> bool:
        """Whether it multiplies matrices, so that the dtype of its inputs is what it computes in."""
        return self.op in _GEMMS or self.op.startswith(_ATTENTION)

    @property
    def is_scaled(self) -> bool:
        """Whether it multiplies matrices with scales, as FP8 does."""
        return self.op.startswith(_SCALED)

    @property
    def computes(self) -> bool:
        """Whether it does arithmetic, rather than cast, move or allocate."""
        return self.op not in _MOVES


@dataclasses.dataclass(frozen=True)
class ModuleRun:
    """One call of a module: dtypes of its floating outputs, and whether they carry a graph where they could."""

    path: str
    outputs: frozenset[torch.dtype]
    grad_enabled: bool
    requires_grad: bool


@dataclasses.dataclass(frozen=True)
class FunctionRun:
    """One call of a torch function in the forward of ``path``, as the user or a package wrote it: not one that torch's
    own code makes, as the entropy of a distribution does."""

    path: str
    op: str
    inputs: frozenset[torch.dtype]
    outputs: frozenset[torch.dtype]


class Record:
    """What ran between entering and leaving ``recording``."""

    def __init__(self) -> None:
        self.ops: list[OpRun] = []
        self.modules: list[ModuleRun] = []
        self.functions: list[FunctionRun] = []
        self.read: dict[int, set[str | None]] = {}
        """id of each parameter and buffer that an op read -> paths of the modules that were running"""
        self.with_gradient: set[int] = set()
        """ids of parameters for which backward came to a gradient"""
        self.root_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    @property
    def called(self) -> set[str]:
        """Paths of all modules that were called."""
        return {run.path for run in self.modules}


@contextlib.contextmanager
def recording(model: nn.Module, planned: set[str], *, functions: bool = False) -> Iterator[Record]:
    """Record all that runs inside, on behalf of ``model`` and of the loss behind it.

    Args:
        model: the model whose modules are told apart.
        planned: paths of modules that the plan names.
        functions: also note calls of torch functions. Off where it would be seen: TransformerEncoderLayer leaves its
            fast path when functions are watched.
    """
    record = Record()
    stack = ModulePaths(model, record)
    hooks = [
        parameter.register_hook(functools.partial(_note_gradient, record, id(parameter)))
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    # Attention without a fused kernel would multiply in float32 what came to it in 16 bits.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with contextlib.ExitStack() as modes:
            modes.enter_context(stack.watching())
            modes.enter_context(_Ops(model, planned, record, stack))
            if functions:
                modes.enter_context(_Functions(record, stack))
            yield record
    finally:
        for hook in hooks:
            hook.remove()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _note_gradient(record: Record, key: int, _: Tensor) -> None:
    record.with_gradient.add(key)


class ModulePaths:
    """Paths of the modules whose forward is running, outermost first, kept by wrapping each module's ``forward``.

    Hooks would be seen by TransformerEncoderLayer, which then leaves its fast path; and what a user's hook computes
    (spectral_norm's power iteration) is not the module's own work.
    """

    def __init__(self, model: nn.Module, record: Record | None = None) -> None:
        self.running: list[str] = []
        self._model = model
        self._record = record or Record()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow all module calls inside."""
        own_forward = {module: module.__dict__.get("forward") for module in self._model.modules()}
        for path, module in self._model.named_modules():
            module.__dict__["forward"] = self._wrapped(path, module.forward)
        try:
            yield
        finally:
            for module, forward in own_forward.items():
                if forward is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = forward

    def _wrapped(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if path == "" and self._record.root_call is None:
                self._record.root_call = (args, kwargs)
            self.running.append(path)
            try:
                output = forward(*args, **kwargs)
            finally:
                self.running.pop()
            self._note(path, output)
            return output

        return run

    def _note(self, path: str, output: Any) -> None:
        tensors = [tensor for tensor in runtime.tensors_in(output) if tensor.is_floating_point()]
        dtypes = frozenset(tensor.dtype for tensor in tensors)
        graph = any(tensor.requires_grad for tensor in tensors)
        self._record.modules.append(ModuleRun(path, dtypes, torch.is_grad_enabled(), graph))


class _Ops(TorchDispatchMode):
    """Notes each aten op; tells which module a backward op belongs to by the autograd node that runs it."""

    def __init__(self, model: nn.Module, planned: set[str], record: Record, stack: ModulePaths) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._planned = planned
        self._record = record
        self._stack = stack
        self._owner_of_node: dict[int, tuple[str | None, str | None]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        phase, owner = self._owner()
        name = func._schema.name.split("::")[-1]
        tensors = runtime.tensors_in((args, kwargs))
        counted = tensors[: _operands(name)]
        self._record.ops.append(OpRun(name, phase, *owner, _floating(counted), _floating(runtime.tensors_in(result))))
        for tensor in map(runtime.source_of, tensors):
            if id(tensor) in self._tensors and phase == "forward":
                reader = TOGETHER if name in ("_foreach_copy_", "empty_like") else owner[0]
                self._record.read.setdefault(id(tensor), set()).add(reader)
        return result

    def _owner(self) -> tuple[Phase, tuple[str | None, str | None]]:
        node = torch._C._current_autograd_node()
        paths = self._stack.running
        if node is not None and not paths:
            if _is_computed_again():
                return "forward", (None, None)
            return "backward", self._owner_of_node.get(node._sequence_nr(), (None, None))
        planned = next((path for path in reversed(paths) if path in self._planned), None)
        if paths and "parametrizations" in paths[-1].split("."):
            planned = None  # how a weight is made (spectral_norm) is no part of what the module computes
        owner = (paths[-1] if paths else LOSS, planned)
        # The node of the op that is running has just taken the number before the next. An op without a node, as in a
        # cast outside of the graph, sees the number of the node before it, which has its owner.
        self._owner_of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, owner)
        return "forward", owner


def _is_computed_again() -> bool:
    """In a backward, whether a checkpointed function runs once more, because a node asks for what it had saved.

    That node may belong to any module in the function, and what runs outside of its modules to none of them.
    """
    return torch.is_grad_enabled() and torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class _Functions(TorchFunctionMode):
    def __init__(self, record: Record, stack: ModulePaths) -> None:
        super().__init__()
        self._record = record
        self._stack = stack

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = runtime.as_met(args, kwargs or {})
        result = func(*args, **kwargs)
        inputs, outputs = _floating(runtime.tensors_in((args, kwargs))), _floating(runtime.tensors_in(result))
        place = current_place(1)
        if outputs and place.origin == place.reader:
            path = self._stack.running[-1] if self._stack.running else LOSS
            self._record.functions.append(FunctionRun(path, op_name(func, args), inputs, outputs))
        return result


def _operands(op: str) -> int | None:
    """How many of the tensors that the op takes it multiplies: float32 logsumexp or scales may follow. None: all."""
    if op.startswith(_ATTENTION):
        return 3
    return 2 if op.startswith(_SCALED) else None


def _floating(tensors: list[Tensor]) -> frozenset[torch.dtype]:
    return frozenset(tensor.dtype for tensor in tensors if tensor.is_floating_point())
