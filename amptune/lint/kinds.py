"""What an object is: gradient scaler, optimizer, scheduler, or something a framework owns."""

from __future__ import annotations

import ast
import re
from functools import cached_property
from typing import Literal

from amptune.lint.fold import UNKNOWN, Folder
from amptune.lint.index import TreeIndex
from amptune.lint.names import Names
from amptune.lint.scopes import Scopes

Kind = Literal["scaler", "wrapper_scaler", "optimizer", "scheduler", "accelerator", "engine", "other", "unknown"]

SCALER_CONSTRUCTORS = frozenset(
    {"torch.amp.GradScaler", "torch.cuda.amp.GradScaler", "torch.cpu.amp.GradScaler", "torch.xpu.amp.GradScaler",
     "torch.npu.amp.GradScaler", "torch_npu.npu.amp.GradScaler", "torch_xla.amp.GradScaler",
     "torch.distributed.fsdp.ShardedGradScaler"}
)  # fmt: skip
_SCALER_CLASSES = ("GradScaler", "ShardedGradScaler")
_FOREIGN_SCALER = re.compile(
    r"(?:Standard|MinMax|MaxAbs|Robust|Quantile|Power|Target|Feature|Image|Data|Mean|Min|Time|Temporal|NOP|StdMean)\w*Scaler"
)  # fmt: skip
_WRAPPER_SCALER = re.compile(r"(?:Native|Apex|Amp|Loss|Dynamic|Mixed|Grad)\w*Scal(?:er|ing)")
_SCALER_NAME = re.compile(r"(?i:(?:^|_)(?:grad|amp|loss|fp16|g|d|gen|disc)?_?scalers?(?:_|\d|$))|[a-z]Scaler")
_SCHEDULER_NAME = re.compile(r"sched|warmup|(?:^|_)lrs?(?:_|$)|annealer", re.IGNORECASE)
_OPTIMIZER_NAME = re.compile(
    r"(?i:optim|(?:^|_)opts?(?:_|\d|$)|(?:^|_)(?:adamw?|sgd|lion|lamb|rmsprop|adafactor|muon)(?:_|\d|$)|solver)"
    r"|^opt[A-Z]|Opt$"
)
_ENGINE_NAME = re.compile(r"engine|accelerator|fabric", re.IGNORECASE)
# Methods that no gradient scaler has: an object with one of them is a feature scaler.
_FEATURE_METHODS = frozenset({"fit", "fit_transform", "transform", "inverse_transform", "partial_fit", "inverse"})
_FRAMEWORKS = {
    "accelerate": "accelerate", "lightning": "lightning", "pytorch_lightning": "lightning",
    "lightning_fabric": "fabric", "deepspeed": "deepspeed", "mmengine": "mmengine", "mmcv": "mmengine",
    "apex": "apex", "ignite": "ignite", "composer": "composer", "colossalai": "colossalai", "fairseq": "fairseq",
    "transformers": "transformers", "trl": "transformers", "timm": "timm", "fastai": "fastai",
}  # fmt: skip


class Kinds:
    """Type-like facts of one file, from constructors, annotations, and as a last resort from names."""

    def __init__(self, index: TreeIndex, scopes: Scopes, names: Names, folder: Folder) -> None:
        self._index = index
        self._scopes = scopes
        self._names = names
        self._folder = folder
        self._memo: dict[ast.expr, Kind] = {}

    @cached_property
    def frameworks(self) -> frozenset[str]:
        """Training frameworks the file imports, such as {"accelerate", "lightning"}."""
        modules = [alias.name for node in self._index.nodes(ast.Import) for alias in node.names]
        modules += [node.module or "" for node in self._index.nodes(ast.ImportFrom) if not node.level]
        found = {_FRAMEWORKS.get(module.partition(".")[0], "") for module in modules} - {""}
        if any(module.startswith(("lightning.fabric", "lightning_fabric")) for module in modules):
            found.add("fabric")
        return frozenset(found)

    def of(self, node: ast.expr) -> Kind:
        """What the expression is, as well as the file tells."""
        if node not in self._memo:
            self._memo[node] = "unknown"
            self._memo[node] = self._classify(node)
        return self._memo[node]

    def scaler_constructors(self) -> list[ast.Call]:
        """Calls that make a torch gradient scaler, in source order."""
        return self._constructors

    @cached_property
    def _constructors(self) -> list[ast.Call]:
        local = {cls.name for cls in self._index.nodes(ast.ClassDef) if self._is_scaler_class(cls)}
        identifiers = {*_SCALER_CLASSES, *local, *self._scopes.alias_identifiers}
        candidates = (call for call in self._index.nodes(ast.Call) if _last_identifier(call.func) in identifiers)
        return [call for call in candidates if self.is_scaler_constructor(call)]

    def constructors_of(self, node: ast.expr) -> list[ast.Call]:
        """The calls of this file whose result the expression may be."""
        return [leaf for leaf in self._names.values(node) if isinstance(leaf, ast.Call)]

    def enabled_by(self, constructor: ast.Call) -> ast.expr | None:
        """The ``enabled`` argument of a GradScaler constructor."""
        return next((item.value for item in constructor.keywords if item.arg == "enabled"), None)

    def is_switched_off(self, scaler: ast.expr) -> bool:
        """Whether every constructor of the scaler says ``enabled=False``, constantly."""
        calls = [call for call in self.constructors_of(scaler) if self.is_scaler_constructor(call)]
        values = [self._folder.constant(self.enabled_by(call)) for call in calls]
        return bool(values) and all(value is not UNKNOWN and not value for value in values)

    def _classify(self, node: ast.expr) -> Kind:
        kinds = {self._leaf(leaf) for leaf in self._names.values(node)} - {"none"}
        for kind in ("scaler", "wrapper_scaler", "accelerator", "engine", "optimizer", "scheduler"):
            if kind in kinds:
                return kind
        return "other" if kinds == {"other"} else self._by_name(node)

    def _leaf(self, leaf: ast.expr) -> str:
        if isinstance(leaf, ast.Constant):
            return "none"
        if isinstance(leaf, ast.Call):
            return self._made_by(leaf)
        if isinstance(leaf, ast.Name):
            return self._annotated(leaf)
        return "unknown"

    def _made_by(self, call: ast.Call) -> str:
        if self.is_scaler_constructor(call):
            return "scaler"
        names = self._names.qualified(call.func)
        last = (names[0] if names else _last_identifier(call.func)).rpartition(".")[2]
        if _FOREIGN_SCALER.fullmatch(last):
            return "other"
        if last in _SCALER_CLASSES and names and names[0].startswith("."):
            return "scaler"  # the project's own re-export
        if _WRAPPER_SCALER.search(last):
            return "wrapper_scaler"
        if names and names[0] == "accelerate.Accelerator":
            return "accelerator"
        if any(name.startswith(("torch.optim.lr_scheduler.", "transformers.get_")) for name in names):
            return "scheduler"
        if any(name.startswith(("torch.optim.", "apex.optimizers.", "bitsandbytes.optim.")) for name in names):
            return "optimizer"
        return "unknown"

    def is_scaler_constructor(self, call: ast.Call) -> bool:
        """Whether the call makes a torch gradient scaler, or one of a subclass that this file defines."""
        if any(name in SCALER_CONSTRUCTORS for name in self._names.qualified(call.func)):
            return True
        func = call.func
        if isinstance(func, ast.Name):  # a subclass of GradScaler that is defined in this file
            classes = [binding.node for binding in self._scopes.lookup(func.id, func)]
            return any(isinstance(cls, ast.ClassDef) and self._is_scaler_class(cls) for cls in classes)
        return False

    def _is_scaler_class(self, cls: ast.ClassDef) -> bool:
        return any(name in SCALER_CONSTRUCTORS for base in cls.bases for name in self._names.qualified(base))

    def _annotated(self, name: ast.Name) -> str:
        for binding in self._scopes.lookup(name.id, name):
            annotation = binding.node.annotation if isinstance(binding.node, ast.arg | ast.AnnAssign) else None
            text = _annotation_names(annotation) if annotation is not None else ()
            if any(item in _SCALER_CLASSES for item in text):
                return "scaler"
            if any(_FOREIGN_SCALER.fullmatch(item) for item in text):
                return "other"
            if any(_WRAPPER_SCALER.search(item) for item in text):
                return "wrapper_scaler"
            if any(item.endswith("Optimizer") for item in text):
                return "optimizer"
            if any("Scheduler" in item or item.endswith("LR") for item in text):
                return "scheduler"
        return "unknown"

    def _by_name(self, node: ast.expr) -> Kind:
        text = _last_identifier(node)
        if _SCALER_NAME.search(text) and not self._is_feature_scaler(text):
            return "scaler"
        if _SCHEDULER_NAME.search(text):
            return "scheduler"
        if _OPTIMIZER_NAME.search(text):
            return "optimizer"
        if _ENGINE_NAME.search(text):
            return "accelerator" if "accelerat" in text.lower() else "engine"
        return "unknown"

    def _is_feature_scaler(self, text: str) -> bool:
        return text in self._feature_scalers

    @cached_property
    def _feature_scalers(self) -> frozenset[str]:
        calls = (node.func for node in self._index.nodes(ast.Call))
        found = {
            _last_identifier(func.value)
            for func in calls
            if isinstance(func, ast.Attribute) and func.attr in _FEATURE_METHODS
        }
        return frozenset(found)


def _last_identifier(node: ast.expr) -> str:
    """The name an expression ends in: ``self.scalers[0]`` is "scalers", ``x["scaler"]`` is "scaler"."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str() as name)):
            return name
        case ast.Subscript(value=value) | ast.Starred(value=value) | ast.Await(value=value):
            return _last_identifier(value)
        case ast.Call(func=func):
            return _last_identifier(func)
    return ""


def _annotation_names(annotation: ast.expr) -> tuple[str, ...]:
    """Every identifier in an annotation, also in one written as a string."""
    found: list[str] = []
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"\w+", node.value)
    return tuple(found)
