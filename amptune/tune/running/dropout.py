"""Switches dropout off while candidates are judged.

Which elements a dropout kernel drops depends on the dtype of the tensor, through the width of its vectors, so the same
seed gives a candidate other masks than the reference: two draws would be compared, and not two precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode

_DROPOUTS = frozenset({
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.alpha_dropout, torch.alpha_dropout_,
    torch.feature_dropout, torch.feature_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_,
})  # fmt: skip
_RECURRENT = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})
_WITH_PROBABILITY = frozenset({F.scaled_dot_product_attention, F.multi_head_attention_forward})
_POSITION = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}


class DropoutOff(TorchFunctionMode):
    """While it is entered, dropout gives back what it gets, and attention and recurrent layers drop nothing.

    ``used`` says whether there was any to switch off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            self.used = True
            return args[0] if args else kwargs["input"]
        if func in _RECURRENT:
            # The one float among the arguments, packed sequence or not, is the probability.
            self.used |= any(isinstance(value, float) and value > 0 for value in args)
            args = tuple(0.0 if isinstance(value, float) else value for value in args)
        if func in _WITH_PROBABILITY:
            args, kwargs = self._without_probability(_POSITION[func], args, kwargs)
        return func(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        """The backward of ``loss`` with dropout off in the layers that it runs once more, the checkpointed ones.

        ``loss.backward()`` is itself a function that a mode handles, and the mode is off while it does.
        """
        with self:
            _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (),
                                 allow_unreachable=True, accumulate_grad=True)  # fmt: skip

    def _without_probability(
        self, position: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(args) > position:
            self.used |= args[position] > 0
            return (*args[:position], 0.0, *args[position + 1 :]), kwargs
        self.used |= kwargs.get("dropout_p", 0.0) > 0
        return args, kwargs | {"dropout_p": 0.0}
