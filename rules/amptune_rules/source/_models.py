"""Calls that run a network, a loss, or an op that autocast casts for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from amptune.core.ops import OPS, Autocast
from amptune.core.spellings import op_of_function, op_of_name
from amptune.lint.regions import AUTOCAST_DEVICE, Region
from amptune.lint.source import SourceFile

_MODEL = re.compile(
    r"(?:^|_)(?:model|net|network|backbone|encoder|decoder|generator|discriminator|critic|actor|policy|student|teacher|"
    r"unet|vae|transformer|replica|classifier|detector|segmentor|module|head|ddp|net_?[gd]|gen|disc|gpt|resnet|bert|llm|lm|"
    r"vgg|vit|cnn|densenet|mobilenet|convnext|swin|autoencoder)\d*(?:_|$)|"
    r"[a-z](?:Model|Net|Network)$|^(?-i:[GD])(?:_\w+|\d)?$",
    re.IGNORECASE,
)
_LOSS = re.compile(
    r"loss|criteri|cross_entropy|nll|objective|(?:^|_)(?:crit|b?ce|mse|dice|focal|kld?|l1)(?:_(?:fn|func|fct)|\d?)$",
    re.IGNORECASE,
)
_MATMUL_LAYER = re.compile(
    r"(?:^|_)(?:conv|linear|proj|projection|fc|attn|attention|mlp|ffn|qkv|to_(?:q|k|v|qkv|out)|[qkvo]_?proj|dense|lstm|gru)"
    r"(?:\w?\d*)(?:_|$)",
    re.IGNORECASE,
)
_MATMUL_MODULES = frozenset(
    {"Linear", "Bilinear", "LazyLinear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d",
     "ConvTranspose3d", "MultiheadAttention", "LSTM", "GRU", "RNN"}
)  # fmt: skip
_CONTAINERS = frozenset({"Sequential", "DataParallel", "DistributedDataParallel"})
_FLOAT_MODULES = frozenset(
    {"LayerNorm", "GroupNorm", "RMSNorm", "Softmax", "Softmin", "LogSoftmax", "Softplus", "Upsample", "Embedding",
     "EmbeddingBag", "CosineSimilarity", "PairwiseDistance"}
)  # fmt: skip
_WRAPPERS = frozenset({"to", "cuda", "cpu", "eval", "train", "half", "float", "bfloat16", "requires_grad_"})
# Methods of a model that run no forward.
_NO_FORWARD = frozenset(
    {"train", "eval", "parameters", "named_parameters", "modules", "named_modules", "buffers", "children", "state_dict",
     "load_state_dict", "zero_grad", "to", "cuda", "cpu", "half", "float", "bfloat16", "double", "requires_grad_",
     "apply", "named_children", "no_sync", "save_pretrained", "register_buffer", "register_parameter", "add_module",
     "get_parameter", "compile", "share_memory", "set_epoch", "named_buffers", "join", "get", "items", "keys", "values",
     "type", "extra_repr", "append", "pop", "update", "copy", "split", "format", "startswith", "endswith", "replace",
     "gradient_checkpointing_enable", "backward", "step", "save", "load", "freeze", "unfreeze", "reset_parameters"}
)  # fmt: skip


def last_word(node: ast.expr) -> str:
    """The name an expression ends in: "encoder" of ``self.model.encoder``, "nets" of ``nets[0]``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return last_word(value)
    return ""


def calls_in(nodes: Iterable[ast.AST]) -> Iterator[ast.Call]:
    """Calls in some statements, functions and classes defined there left out."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Call):
            yield node
        stack.extend(ast.iter_child_nodes(node))


def is_loss_call(source: SourceFile, call: ast.Call) -> bool:
    """Whether the call computes a loss, by its name or by the class of what is called."""
    if any(name.startswith("torch.nn.") and _is_loss_name(name) for name in _made_by(source, call.func)):
        return True
    return isinstance(call.func, ast.Name | ast.Attribute) and _is_loss_name(last_word(call.func))


def _is_loss_name(name: str) -> bool:
    return _LOSS.search(name) is not None and "scale" not in name.lower()


def model_of_call(source: SourceFile, call: ast.Call) -> ast.expr | None:
    """The network that a call runs: ``model`` of ``model(x)`` and ``model.encode(x)``; None for anything else."""
    func = call.func
    if isinstance(func, ast.Attribute) and is_model(source, func.value):
        return None if func.attr in _NO_FORWARD or func.attr.startswith(("_", "set_", "get_", "load_")) else func.value
    return func if is_model(source, func) and not is_loss_call(source, call) else None


def is_model(source: SourceFile, node: ast.expr) -> bool:
    """Whether the expression is a network: made by a torch.nn class, or called one, and no function or class."""
    if not isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
        return False
    if source.qualified(node):
        return False
    if isinstance(node, ast.Name | ast.Attribute):
        if any(binding.kind in ("function", "class", "import") for binding in source.bindings(node)):
            return False
        if source.definition(node) is not None:
            return False
    made = _made_by(source, node)
    if made:
        return any(name.startswith("torch.nn.") and "Loss" not in name for name in made) or _is_named_model(node)
    return _is_named_model(node)


def is_layer_call(source: SourceFile, call: ast.Call) -> bool:
    """Whether the call runs a network, or a layer that the module around it keeps on ``self``."""
    if model_of_call(source, call) is not None:
        return True
    func = call.func
    cls = source.scopes.owner(func.value) if isinstance(func, ast.Attribute) else None
    if cls is None or source.definition(func) is not None:
        return False
    return any(isinstance(item, ast.FunctionDef) and item.name == "forward" for item in cls.body)


def makes_half(source: SourceFile, value: ast.expr) -> bool:
    """Whether autocast makes the value half: the output of a network, a matrix product, a convolution."""
    if autocast_class(source, value) is Autocast.LOWER:
        return True
    if not isinstance(value, ast.Call):
        return False
    layers = [leaf for leaf in _makers(source, value.func) if _torch_class(source, leaf)]
    if layers:
        return all(_is_half_layer(source, layer) for layer in layers)
    if model_of_call(source, value) is not None:
        return True
    return is_layer_call(source, value) and _MATMUL_LAYER.search(last_word(value.func)) is not None


def _is_half_layer(source: SourceFile, layer: ast.Call) -> bool:
    """Whether a torch.nn layer gives half precision under CUDA autocast; a Sequential by its last layer."""
    name = _torch_class(source, layer)
    if name in _CONTAINERS:
        last = layer.args[-1] if layer.args else None
        return not isinstance(last, ast.Call) or _torch_class(source, last) not in _FLOAT_MODULES
    return name in _MATMUL_MODULES


def _torch_class(source: SourceFile, made: ast.Call) -> str:
    """The class of torch.nn that the call makes an object of; "" for others."""
    names = [name for name in source.qualified(made.func) if name.startswith("torch.nn.")]
    return names[0].rpartition(".")[2] if names else ""


def is_rework(value: ast.expr, name: str) -> bool:
    """Whether the value is the named tensor itself in another shape: ``x.squeeze(1)``, ``x[:, 0]``."""
    node = value
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node is not value and isinstance(node, ast.Name) and node.id == name


def _is_named_model(node: ast.expr) -> bool:
    word = last_word(node)
    return _MODEL.search(word) is not None and not _is_loss_name(word)


def _made_by(source: SourceFile, node: ast.expr) -> set[str]:
    """Qualified names of what made the object, as far as they are known."""
    return {name for maker in _makers(source, node) for name in source.qualified(maker.func)}


def _makers(source: SourceFile, node: ast.expr) -> list[ast.Call]:
    """The calls that the object may come from."""
    leaves = source.values(node) if isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call) else []
    return [maker for leaf in leaves if isinstance(maker := unwrapped(leaf), ast.Call)]


def unwrapped(node: ast.expr) -> ast.expr:
    """What makes a module that is then moved or cast: ``BCELoss()`` of ``BCELoss().cuda()``."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _WRAPPERS:
        if not isinstance(node.func.value, ast.Call):
            break
        node = node.func.value
    return node


def op_of_call(source: SourceFile, call: ast.Call) -> str | None:
    """The op of a torch function or tensor method, by the op table; None for other calls."""
    for name in source.qualified(call.func):
        return op_of_function(name)
    if isinstance(call.func, ast.Attribute) and not is_model(source, call.func.value):
        return op_of_name(call.func.attr)
    return None


def autocast_class(source: SourceFile, node: ast.expr, device: str | None = "cuda") -> Autocast | None:
    """What autocast does with the op of a call, or of ``a @ b``; None for what is no op."""
    op = "matmul" if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) else None
    if isinstance(node, ast.Call):
        op = op_of_call(source, node)
    if op is None or op not in OPS:
        return None
    return OPS[op].cpu if device == "cpu" else OPS[op].cuda


def is_torch_autocast(source: SourceFile, region: Region | None) -> bool:
    """Whether the region is made by torch's own class, not by a framework's ``accelerator.autocast()``."""
    call = region.call if region is not None else None
    return isinstance(call, ast.Call) and any(name in AUTOCAST_DEVICE for name in source.qualified(call.func))


def is_float16(source: SourceFile, region: Region) -> bool:
    """Whether a region computes in float16 on a GPU: by its dtype, or by default for a device chosen at run time."""
    if region.dtypes == {"float16"}:
        return True
    call = region.call
    if region.device is not None or not isinstance(call, ast.Call) or not is_torch_autocast(source, region):
        return False
    return source.argument(call, "dtype", 1) is None and not source.has_splat(call)
