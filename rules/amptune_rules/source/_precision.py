"""What precision an expression has: float16 for certain, float32, or whatever the network runs in."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from amptune.core.ops import OPS, Autocast
from amptune.core.spellings import FUNCTION_MODULES, op_of_name
from amptune.lint.regions import Region
from amptune.lint.scopes import Binding
from amptune.lint.source import SourceFile
from amptune_rules.source._facts import Fact, either, joined
from amptune_rules.source._half_models import made_half
from amptune_rules.source._models import is_loss_call, is_model
from amptune_rules.source._numbers import number_of
from amptune_rules.source._op_names import COMPOSED_FP32, EXACT, MADE, OF_SEVERAL, SCALAR_ATTRIBUTES, SCALARS
from amptune_rules.source._reach import argument_for, callee, callers, returned
from amptune_rules.source._reaching import reaching
from amptune_rules.source._ways import autocast_ways

_DTYPE_FACTS = {"float16": Fact.HALF, "bfloat16": Fact.BF16, "float32": Fact.WIDE, "float64": Fact.WIDE}
_CASTS = {
    "half": Fact.HALF, "bfloat16": Fact.BF16, "float": Fact.WIDE, "double": Fact.WIDE, "int": Fact.EXACT,
    "long": Fact.EXACT, "bool": Fact.EXACT, "byte": Fact.EXACT, "short": Fact.EXACT,
}  # fmt: skip
# ``x: torch.HalfTensor``, and the classes of jaxtyping.
_ANNOTATED = {
    "HalfTensor": Fact.HALF, "Float16": Fact.HALF, "BFloat16Tensor": Fact.BF16, "BFloat16": Fact.BF16,
}  # fmt: skip
_FP32_CLASSES = (Autocast.FP32, Autocast.FP32_OUT)
_LOWER_MODULES = re.compile(r"^(?:Lazy)?(?:Linear|Bilinear|Conv(?:Transpose)?\dd|LSTM|GRU|RNN|MultiheadAttention)")
_FP32_MODULES = re.compile(r"LayerNorm|GroupNorm|RMSNorm|^Softmax|LogSoftmax|Softmin|Softplus|Loss$|CosineSimilarity")
_DEPTH = 30
_CALL_DEPTH = 4


def _last_identifier(annotation: ast.expr | None) -> str:
    """The last name of an annotation: "Float16" of ``jaxtyping.Float16[Tensor, "b n"]``."""
    node = annotation.value if isinstance(annotation, ast.Subscript) else annotation
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class _Precisions:
    """Facts of one file."""

    def __init__(self, source: SourceFile) -> None:
        self._source = source
        self._memo: dict[ast.AST, Fact] = {}

    def of(self, node: ast.expr | None, depth: int = 0) -> Fact:
        if node is None or depth > _DEPTH:
            return Fact.UNKNOWN
        if node not in self._memo:
            self._memo[node] = Fact.UNKNOWN  # what is defined by itself adds nothing
            self._memo[node] = self._find(node, depth + 1)
        return self._memo[node]

    def _find(self, node: ast.expr, depth: int) -> Fact:
        match node:
            case ast.Constant():
                return Fact.SCALAR
            case ast.Name():
                return self._name(node, depth)
            case ast.Attribute():
                return self._attribute(node, depth)
            case ast.Subscript(value=value) | ast.NamedExpr(value=value) | ast.Starred(value=value):
                return self.of(value, depth)
            case ast.UnaryOp(op=ast.Not()) | ast.Compare():
                return Fact.EXACT
            case ast.UnaryOp(operand=operand):
                return self.of(operand, depth)
            case ast.IfExp(body=body, orelse=orelse):
                return either([self.of(body, depth), self.of(orelse, depth)])
            case ast.BoolOp(values=parts):
                return either(self.of(part, depth) for part in parts)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return joined(self.of(item, depth) for item in items)
            case ast.BinOp():
                return self._binary(node, depth)
            case ast.Call():
                return self._call(node, depth)
        return Fact.UNKNOWN

    # Names and attributes.

    def _name(self, node: ast.Name, depth: int) -> Fact:
        bindings = [binding for binding in reaching(self._source, node) if binding.kind != "update"]
        return either(self._bound(binding, depth) for binding in bindings) if bindings else Fact.UNKNOWN

    def _bound(self, binding: Binding, depth: int) -> Fact:
        if binding.kind in ("assign", "unpack") and binding.value is not None:
            return self.of(binding.value, depth)
        if binding.kind == "loop" and isinstance(binding.value, ast.Call):
            iterated = self._source.qualified(binding.value.func)
            return Fact.SCALAR if iterated == ("range",) else Fact.UNKNOWN
        if binding.kind == "parameter" and isinstance(binding.node, ast.arg):
            return self._parameter(binding, binding.node, depth)
        return Fact.UNKNOWN

    def _parameter(self, binding: Binding, node: ast.arg, depth: int) -> Fact:
        annotation = node.annotation
        if isinstance(annotation, ast.Name) and annotation.id in ("float", "int", "bool", "str"):
            return Fact.SCALAR
        if (said := _ANNOTATED.get(_last_identifier(annotation))) is not None:
            return said
        if isinstance(binding.value, ast.Constant) and isinstance(binding.value.value, int | float):
            return Fact.SCALAR
        function = self._source.function_of(node)
        if function is None or depth > _DEPTH // 2:
            return Fact.UNKNOWN
        handed = [argument_for(self._source, call, function, binding.name) for call in callers(self._source, function)]
        return either(self.of(item, depth + 5) for item in handed) if handed else Fact.UNKNOWN

    def _attribute(self, node: ast.Attribute, depth: int) -> Fact:
        if node.attr in SCALAR_ATTRIBUTES or number_of(self._source, node) is not None:
            return Fact.SCALAR
        bindings = self._source.bindings(node)
        if not bindings and (buffer := self._buffer(node)) is not None:
            return Fact.EXACT if self.of(buffer, depth) is Fact.EXACT else Fact.PROMOTED
        if not bindings:
            base = Fact.UNKNOWN if self._source.qualified(node) else self.of(node.value, depth)
            return base if base in (Fact.HALF, Fact.FOLLOWS, Fact.WIDE) else Fact.UNKNOWN
        return either(self._bound(binding, depth) for binding in bindings)

    def _buffer(self, node: ast.Attribute) -> ast.expr | None:
        """What ``self.register_buffer("name", value)`` registers under the attribute's name."""
        cls = self._source.scopes.owner(node.value)
        for call in self._source.method_calls("register_buffer") if cls is not None else ():
            name = self._source.argument(call, "name", 0)
            if isinstance(name, ast.Constant) and name.value == node.attr and self._source.class_of(call) is cls:
                return self._source.argument(call, "tensor", 1)
        return None

    # Operators.

    def _binary(self, node: ast.BinOp, depth: int) -> Fact:
        left, right = self.of(node.left, depth), self.of(node.right, depth)
        if isinstance(node.op, ast.MatMult):
            return self._cast("lower", node, [left, right])
        is_reciprocal = isinstance(node.op, ast.Div) and left is Fact.SCALAR and right is not Fact.SCALAR
        if isinstance(node.op, ast.Pow) or is_reciprocal:
            return self._cast("fp32", node, [left, right])
        if isinstance(node.op, ast.FloorDiv) and left is Fact.SCALAR and right is Fact.UNKNOWN:
            return Fact.SCALAR  # ``width // self.heads``: sizes of tensors are divided by numbers
        if isinstance(node.op, ast.Div) and {left, right} == {Fact.EXACT}:
            return Fact.WIDE
        if Fact.EXACT in (left, right) and self._has_float(node.left if right is Fact.EXACT else node.right):
            return Fact.WIDE  # an integer tensor and a float make a float32 tensor
        return joined([left, right])

    def _has_float(self, node: ast.expr) -> bool:
        if number_of(self._source, node) is None:
            return False
        return any(isinstance(item, ast.Constant) and isinstance(item.value, float) for item in ast.walk(node))

    def _cast(self, kind: str, node: ast.AST, arguments: Sequence[Fact]) -> Fact:
        """The result of an op that autocast casts down ("lower") or up ("fp32"), for where it runs."""
        result = joined(arguments)
        if result is Fact.SCALAR and kind == "fp32":
            return Fact.SCALAR
        regions = autocast_ways(self._source, node)
        on = [region for region in regions if region is not None and region.enabled is not False]
        if not on:
            return self._without_autocast(kind, result, any(regions))
        if kind == "fp32":
            return result if all(region.device == "cpu" for region in on) else Fact.WIDE
        return either(_lower_fact(region) for region in on) if len(on) == len(regions) else Fact.FOLLOWS

    def _without_autocast(self, kind: str, result: Fact, is_off: bool) -> Fact:
        if is_off or result in (Fact.HALF, Fact.BF16, Fact.WIDE):
            return result
        return Fact.FOLLOWS if kind == "lower" else Fact.PROMOTED

    # Calls.

    def _call(self, node: ast.Call, depth: int) -> Fact:
        source = self._source
        if number_of(source, node) is not None:
            return Fact.SCALAR
        for name in source.qualified(node.func):
            return self._function(name, node, depth)
        if callee(source, node) is not None:
            return self._local(node, depth)
        if isinstance(node.func, ast.Attribute) and not self._is_module(node):
            return self._method(node, node.func, depth)
        return self._module(node, depth)

    def _function(self, name: str, node: ast.Call, depth: int) -> Fact:
        module, _, last = name.rpartition(".")
        arguments = [self.of(item, depth) for item in node.args]
        if module in FUNCTION_MODULES:
            return self._op(last, node, arguments)
        if not module and last in ("abs", "max", "min", "sum", "list", "tuple", "reversed", "sorted"):
            return joined(arguments)
        if module in ("math", "") and last not in ("super", "getattr"):
            return Fact.SCALAR if callee(self._source, node) is None else self._local(node, depth)
        if module.startswith("numpy"):
            return Fact.WIDE
        if name in ("torch.nn.Parameter", "torch.nn.parameter.Parameter"):
            return Fact.PROMOTED  # autocast leaves weights in float32
        local = callee(self._source, node)
        return self._local(node, depth) if local is not None else Fact.UNKNOWN

    def _method(self, node: ast.Call, func: ast.Attribute, depth: int) -> Fact:
        name = func.attr
        receiver = self.of(func.value, depth)
        if name in SCALARS:
            return Fact.SCALAR
        if name in _CASTS:
            return _CASTS[name]
        if name in ("numpy", "asnumpy"):
            return Fact.WIDE  # an array, which half precision of torch does not reach
        if name in ("to", "type"):
            return self._to(node, receiver, depth)
        if name in ("type_as", "view_as_complex") and node.args:
            return self.of(node.args[0], depth)
        return self._op(name, node, [receiver, *(self.of(item, depth) for item in node.args)])

    def _to(self, node: ast.Call, receiver: Fact, depth: int) -> Fact:
        """``x.to(...)``: the dtype that is named; the receiver's when only a device is."""
        for item in (*node.args, *(keyword.value for keyword in node.keywords)):
            fact = self.of_dtype(item, depth)
            if fact is not Fact.UNKNOWN:
                return fact
            if isinstance(item, ast.Attribute | ast.Name) and "dtype" in self._source.segment(item):
                return Fact.UNKNOWN
        return receiver

    def of_dtype(self, node: ast.expr | None, depth: int = 0) -> Fact:
        """The precision that a dtype expression names: ``torch.float16``, ``x.dtype``, a tensor in ``x.to(y)``."""
        dtypes = self._source.dtypes(node)
        if dtypes and "?" not in dtypes:
            return either(_DTYPE_FACTS.get(dtype, Fact.EXACT) for dtype in dtypes)
        if node is None or depth > _DEPTH:
            return Fact.UNKNOWN
        facts = [
            self.of(leaf.value, depth + 1) if isinstance(leaf, ast.Attribute) and leaf.attr == "dtype" else Fact.UNKNOWN
            for leaf in self._source.values(node)
        ]
        return either(facts)

    def _op(self, name: str, node: ast.Call, arguments: Sequence[Fact]) -> Fact:
        dtype = self._source.argument(node, "dtype")
        if dtype is not None and not (isinstance(dtype, ast.Constant) and dtype.value is None):
            return self.of_dtype(dtype)
        if name in SCALARS:
            return Fact.SCALAR
        if name in EXACT:
            return Fact.EXACT
        if name in MADE:
            follows = name.endswith("_like") or name.startswith("new_")
            return (arguments[0] if arguments else Fact.UNKNOWN) if follows else Fact.WIDE
        if name in COMPOSED_FP32:
            return self._cast("fp32", node, arguments)
        op = op_of_name(name)
        kind = OPS[op].cuda if op in OPS else Autocast.FOLLOW
        if kind is Autocast.LOWER:
            return self._cast("lower", node, arguments)
        if kind in _FP32_CLASSES:
            return self._cast("fp32", node, arguments[:1] if name in ("softmax", "sum", "norm") else arguments)
        if name == "where":
            return joined(arguments[1:])
        return joined(arguments) if name.removesuffix("_") in OF_SEVERAL else next(iter(arguments), Fact.UNKNOWN)

    # Modules and functions of the file.

    def _is_module(self, node: ast.Call) -> bool:
        """Whether the call runs a module: one made by torch.nn, one called a model, or an attribute of a module."""
        source, func = self._source, node.func
        if is_model(source, func) or is_loss_call(source, node):
            return True
        leaves = [leaf for leaf in source.values(func) if isinstance(leaf, ast.Call)]
        if any(name.startswith("torch.nn.") for leaf in leaves for name in source.qualified(leaf.func)):
            return True
        return isinstance(func, ast.Attribute) and source.scopes.owner(func.value) is not None and bool(node.args)

    def _module(self, node: ast.Call, depth: int) -> Fact:
        source = self._source
        arguments = [self.of(item, depth) for item in node.args]
        if made_half(source, node.func):
            return Fact.HALF
        if is_loss_call(source, node):
            return self._cast("fp32", node, arguments[:1] or [Fact.UNKNOWN])
        classes = {
            name.rpartition(".")[2]
            for leaf in source.values(node.func)
            if isinstance(leaf, ast.Call)
            for name in source.qualified(leaf.func)
            if name.startswith("torch.nn.")
        }
        if classes and all(_FP32_MODULES.search(name) for name in classes):
            return self._cast("fp32", node, arguments[:1])
        if classes and all(_LOWER_MODULES.search(name) for name in classes):
            return self._cast("lower", node, [Fact.UNKNOWN])
        if classes and all(name.startswith("Embedding") for name in classes):
            return Fact.PROMOTED
        if classes and not classes & {"Sequential", "ModuleList", "ModuleDict", "DataParallel"}:
            return joined(arguments[:1]) if arguments else Fact.FOLLOWS
        is_network = isinstance(node.func, ast.Attribute) or is_model(source, node.func)
        return Fact.FOLLOWS if is_network else Fact.UNKNOWN

    def _local(self, node: ast.Call, depth: int) -> Fact:
        function = callee(self._source, node)
        if made_half(self._source, node.func):
            return Fact.HALF
        if function is None or depth > _DEPTH - _CALL_DEPTH:
            return Fact.UNKNOWN
        facts = [self.of(value, depth + _DEPTH // _CALL_DEPTH) for value in returned(function)]
        found = either(facts) if facts else Fact.UNKNOWN
        return Fact.FOLLOWS if found is Fact.UNKNOWN and function.name == "forward" else found


def _lower_fact(region: Region) -> Fact:
    if region.enabled is not True or not region.certain:
        return Fact.BF16 if region.dtypes == {"bfloat16"} else Fact.FOLLOWS
    if region.dtypes == {"float16"}:
        return Fact.HALF
    return Fact.BF16 if region.dtypes == {"bfloat16"} else Fact.FOLLOWS


def precision(source: SourceFile, node: ast.expr) -> Fact:
    """The precision of an expression, as far as the file shows it."""
    return _of_file(source).of(node)


def precision_of_dtype(source: SourceFile, node: ast.expr | None) -> Fact:
    """The precision that a dtype expression names, such as ``torch.float16`` or ``x.dtype``."""
    return _of_file(source).of_dtype(node)


def _of_file(source: SourceFile) -> _Precisions:
    return source.shared(_Precisions)
