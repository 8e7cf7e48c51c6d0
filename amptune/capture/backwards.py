"""The backward of a custom autograd function, run once on fakes of what its forward saved.

The capture has the forward of such a function alone. It may have run on fakes or for real; the backward runs on fakes
in both cases, so that it takes no time and an extension never gets real numbers that it was not made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.autograd.function import Function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from amptune.capture.target import tensors_in


class BackwardWatch(TorchFunctionMode):
    """Sees each op of a backward, and of the forward where that runs again."""

    def begin(self, gradients: Sequence[torch.Tensor]) -> None:
        """Told before the first op of the backward which gradients it is given."""


def gradient_node(result: Any) -> Any:
    """The node of autograd that a function's result comes from; ``None`` where nothing of it has a gradient."""
    outputs = (tensor for tensor in tensors_in(result) if tensor.is_floating_point())
    return next((tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None), None)


def run_backward(
    function: type[Function], result: Any, watch: BackwardWatch, dtype: torch.dtype | None = None,
    given: tuple[Any, ...] = (),
) -> None:  # fmt: skip
    """Run the backward of a function on fakes, as far as it goes there: what the user's code raises says nothing, since
    it was not made for these tensors, and what was seen until then stands.

    Args:
        function: its class.
        result: what its forward gave, fake or real.
        watch: sees the ops.
        dtype: what gradients and saved numbers come in, parameters apart; by default what the forward had.
        given: the arguments of the forward. With them it runs on fakes first, under the watch, which so sees what made
            the tensors that are saved; they come in their own dtypes then.
    """
    node = gradient_node(result)
    if node is None:
        return
    outputs = list(tensors_in(result))
    try:
        mode = next((each.fake_mode for each in outputs if isinstance(each, FakeTensor)), None) or FakeTensorMode()
        with torch.no_grad(), _disable_current_modes(), mode, watch:
            gradients = [torch.empty_like(_fake(mode, each), dtype=dtype) for each in outputs]
            context = (_forward_again(function, given, mode) if given else None) or _Saved(node, mode, dtype)
            watch.begin(gradients)
            function.backward(context, *gradients)
    except Exception:  # the user's code, on tensors that it was not made for
        pass


def _forward_again(function: type[Function], given: tuple[Any, ...], mode: FakeTensorMode) -> _Context | None:
    """What a forward on fakes saves; ``None`` where it does not run."""
    arguments = [_fake(mode, each) if isinstance(each, torch.Tensor) else each for each in given]
    context = _Context(tuple(isinstance(each, torch.Tensor) and each.requires_grad for each in given))
    try:
        if function.setup_context is Function.setup_context:
            function.forward(context, *arguments)
        else:
            function.setup_context(context, tuple(arguments), function.forward(*arguments))
    except Exception:  # the user's code, on tensors that it was not made for
        return None
    return context


class _Context:
    """What a forward that runs again is given, and its backward after it."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def mark_dirty(self, *tensors: Any) -> None:
        """Nothing to note here."""

    mark_non_differentiable = save_for_forward = mark_dirty

    def set_materialize_grads(self, value: bool) -> None:
        """Nothing to note here."""


class _Saved:
    """What a backward is given, on fakes of what the forward saved."""

    def __init__(self, node: Any, mode: FakeTensorMode, dtype: torch.dtype | None) -> None:
        self._node, self._mode, self._dtype = node, mode, dtype

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        with _disable_current_modes():  # outputs that were saved are unpacked by an op
            saved = self._node.saved_tensors
        return tuple(self._given(each) if isinstance(each, torch.Tensor) else each for each in saved)

    def _given(self, tensor: torch.Tensor) -> torch.Tensor:
        fake = _fake(self._mode, tensor)
        is_kept = self._dtype is None or not tensor.is_floating_point() or isinstance(tensor, nn.Parameter)
        return fake if is_kept else fake.detach().to(self._dtype)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._node, name)
        return _fake(self._mode, found) if isinstance(found, torch.Tensor) else found


def _fake(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, FakeTensor):
        return tensor
    with _disable_current_modes():  # under the mode itself, nothing may read what a real run saved
        own = tensor.detach()
    return mode.from_tensor(own)
