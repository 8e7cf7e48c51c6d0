"""Layers of torch.nn as sites: their op, and whether their inside is ours to change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from amptune.capture.flow import is_transparent, op_of

_OPS: dict[str, str] = {
    "Linear": "linear", "NonDynamicallyQuantizableLinear": "linear", "Bilinear": "bilinear",
    "Conv1d": "conv1d", "Conv2d": "conv2d", "Conv3d": "conv3d", "ConvTranspose1d": "conv_transpose1d",
    "ConvTranspose2d": "conv_transpose2d", "ConvTranspose3d": "conv_transpose3d",
    "Embedding": "embedding", "EmbeddingBag": "embedding_bag", "LayerNorm": "layer_norm", "RMSNorm": "rms_norm",
    "GroupNorm": "group_norm", "BatchNorm1d": "batch_norm", "BatchNorm2d": "batch_norm", "BatchNorm3d": "batch_norm",
    "SyncBatchNorm": "batch_norm", "InstanceNorm1d": "instance_norm", "InstanceNorm2d": "instance_norm",
    "InstanceNorm3d": "instance_norm", "LocalResponseNorm": "local_response_norm",
    "MultiheadAttention": "multi_head_attention", "LSTM": "lstm", "GRU": "gru", "RNN": "rnn", "LSTMCell": "lstm_cell",
    "GRUCell": "gru_cell", "RNNCell": "rnn_cell", "Softmin": "softmin", "Tanhshrink": "tanhshrink",
}  # fmt: skip
_OPAQUE = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


def layer_op(module: nn.Module, nodes: Sequence[fx.Node]) -> str:
    """The op of a layer: by its class, else that of the call inside which does most."""
    if (named := _named(module)) is not None:
        return named
    ops = [node for node in nodes if not is_transparent(node)]
    return op_of(max(ops, key=_weight)) if ops else "identity"


def has_several_ops(module: nn.Module, nodes: Sequence[fx.Node]) -> bool:
    """Whether a layer that is not named after one op calls several, so that its result is not that of the one."""
    calls = {node.meta["amptune_call"].number for node in nodes if not is_transparent(node)}
    return _named(module) is None and len(calls) > 1


def _named(module: nn.Module) -> str | None:
    for cls in type(module).__mro__:
        if cls.__module__.startswith("torch.nn.modules.") and cls.__name__ in _OPS:
            return _OPS[cls.__name__]
    return None


def _weight(node: fx.Node) -> int:
    return sum(gemm.flops for gemm in node.meta["amptune_call"].gemms)


def is_opaque(module: nn.Module) -> bool:
    """Whether a layer must be left as it is inside: recurrent, attention, or no exact class of torch.nn."""
    public: Any = getattr(nn, type(module).__name__, None)
    exact = public is type(module) or type(module).__name__ == "NonDynamicallyQuantizableLinear"
    return isinstance(module, _OPAQUE) or not exact
