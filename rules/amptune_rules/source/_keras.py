"""TensorFlow and Keras: which Keras a file is written for."""

from __future__ import annotations

import ast

from amptune.lint.source import SourceFile
from amptune_rules.source._identifiers import strings

_KERAS_3_MODULES = ("keras.ops", "keras.config", "keras.random", "keras.src", "keras.saving", "keras.distribution")
_TENSORFLOW_1 = ("tensorflow.Session", "tensorflow.placeholder", "tensorflow.contrib", "tensorflow.ConfigProto",
                 "tensorflow.global_variables_initializer", "tensorflow.get_default_graph")  # fmt: skip


def imported_modules(source: SourceFile) -> set[str]:
    """Modules the file imports, with the names taken from them."""
    modules = {alias.name for node in source.nodes(ast.Import) for alias in node.names}
    for node in source.nodes(ast.ImportFrom):
        if not node.level and node.module:
            modules.add(node.module)
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def uses_legacy_keras(source: SourceFile) -> bool:
    """Whether the file asks for Keras 2: the tf_keras package, or the environment variable."""
    if any(module.partition(".")[0] == "tf_keras" for module in imported_modules(source)):
        return True
    return "TF_USE_LEGACY_KERAS" in strings(source)


def uses_keras_3(source: SourceFile) -> bool:
    """Whether the file is certainly written for Keras 3, by what only that has."""
    if "KERAS_BACKEND" in strings(source):
        return True
    modules = imported_modules(source)
    if any(module.startswith(_KERAS_3_MODULES) for module in modules):
        return True
    reads = source.nodes(ast.Attribute)
    return any(name.startswith(_KERAS_3_MODULES) for node in reads for name in source.qualified(node))


def uses_tensorflow_1(source: SourceFile) -> bool:
    """Whether the file has calls that only TensorFlow 1 has."""
    return bool(source.references(*_TENSORFLOW_1))
