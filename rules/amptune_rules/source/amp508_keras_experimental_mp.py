"""AMP508: mixed precision of TensorFlow by names that were removed."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Edit, Finding, Fix, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import is_version_guarded
from amptune_rules.source._keras import uses_tensorflow_1

_MODULE = "mixed_precision.experimental"
_REWRITE = "enable_mixed_precision_graph_rewrite"
_PACKAGES = ("tensorflow.", "keras.")
# What became of the names; what is not here has no successor that takes the same arguments.
_SUCCESSORS = {"set_policy": "set_global_policy", "global_policy": "global_policy", "Policy": "Policy"}


class KerasExperimentalMp(SourceRule):
    """Mixed precision through tf.keras.mixed_precision.experimental or a graph rewrite, which were removed.

    ## What it does
    Flags names and imports from `keras.mixed_precision.experimental`, and
    `tf.train.experimental.enable_mixed_precision_graph_rewrite` (info for its `tf.compat.v1` spelling, which is still
    there for graphs). Silent in code for TensorFlow 1 and behind a version check.

    ## Why is this bad
    The module became `tf.keras.mixed_precision` in TensorFlow 2.4 and is gone since: importing it raises. The rewrite
    was removed from `tf.train.experimental` in 2.4; it worked on graphs only.

    ## Example
    ```python
    import tensorflow as tf
    policy = tf.keras.mixed_precision.experimental.Policy("mixed_float16")
    tf.keras.mixed_precision.experimental.set_policy(policy)
    ```

    ## Use instead
    ```python
    import tensorflow as tf
    policy = tf.keras.mixed_precision.Policy("mixed_float16")
    tf.keras.mixed_precision.set_global_policy(policy)
    ```

    ## Fix safety
    Safe for `Policy`, `set_policy` and `global_policy`, which have successors of the same meaning. No fix for a policy
    with `loss_scale=`, for the old LossScaleOptimizer, whose arguments changed, or for the graph rewrite.

    ## References
    - https://www.tensorflow.org/guide/mixed_precision
    - https://github.com/tensorflow/tensorflow/releases/tag/v2.4.0
    """

    code = "AMP508"
    name = "keras-experimental-mp"
    severity = Severity.ERROR
    keywords = (b"mixed_precision.experimental", b"mixed_precision import experimental", _REWRITE.encode())

    INVALID = (
        Example(
            "by attributes",
            """\
import tensorflow as tf

policy = tf.keras.mixed_precision.experimental.Policy("mixed_float16")  # <- AMP508@10
tf.keras.mixed_precision.experimental.set_policy(policy)  # <- AMP508@1
""",
            fixed="""\
import tensorflow as tf

policy = tf.keras.mixed_precision.Policy("mixed_float16")
tf.keras.mixed_precision.set_global_policy(policy)
""",
        ),
        Example(
            "the module imported under the name it has now",
            """\
import tensorflow as tf
from tensorflow.keras.mixed_precision import experimental as mixed_precision  # <- AMP508@1

mixed_precision.set_policy("mixed_float16")
print(mixed_precision.global_policy())
""",
            fixed="""\
import tensorflow as tf
from tensorflow.keras import mixed_precision

mixed_precision.set_global_policy("mixed_float16")
print(mixed_precision.global_policy())
""",
        ),
        Example(
            "names imported from it, one with arguments that changed",
            """\
from tensorflow.keras.mixed_precision.experimental import set_policy, Policy  # <- AMP508
import tensorflow.keras.mixed_precision.experimental as mp  # <- AMP508

set_policy(Policy("mixed_float16"))
optimizer = mp.LossScaleOptimizer(make_optimizer(), loss_scale="dynamic")
""",
            fixed="""\
from tensorflow.keras.mixed_precision import set_global_policy as set_policy, Policy
import tensorflow.keras.mixed_precision.experimental as mp  # <- AMP508

set_policy(Policy("mixed_float16"))
optimizer = mp.LossScaleOptimizer(make_optimizer(), loss_scale="dynamic")
""",
        ),
        Example(
            "the graph rewrite, and its compat spelling at severity info",
            """\
import tensorflow as tf

optimizer = tf.keras.optimizers.Adam()
optimizer = tf.train.experimental.enable_mixed_precision_graph_rewrite(optimizer)  # <- AMP508@13
other = tf.compat.v1.train.experimental.enable_mixed_precision_graph_rewrite(optimizer)  # <- AMP508
""",
        ),
    )
    VALID = (
        Example(
            "the present names",
            """\
import tensorflow as tf
from tensorflow.keras import mixed_precision

mixed_precision.set_global_policy("mixed_float16")  # was tf.keras.mixed_precision.experimental.set_policy
""",
        ),
        Example(
            "for old versions only",
            """\
import tensorflow as tf

if hasattr(tf.keras.mixed_precision, "set_global_policy"):
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
else:
    tf.keras.mixed_precision.experimental.set_policy("mixed_float16")
""",
        ),
        Example(
            "an import with a fallback",
            """\
try:
    from tensorflow.keras import mixed_precision
except ImportError:
    from tensorflow.keras.mixed_precision import experimental as mixed_precision
""",
        ),
        Example(
            "TensorFlow 1",
            """\
import tensorflow as tf

x = tf.placeholder(tf.float32, [None, 8])
optimizer = tf.train.AdamOptimizer(1e-3)
optimizer = tf.train.experimental.enable_mixed_precision_graph_rewrite(optimizer)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Attributes and imports of the removed names."""
        if uses_tensorflow_1(source):
            return
        for plain in source.nodes(ast.Import):
            names = [alias.name for alias in plain.names if _is_removed_module(alias.name)]
            if names and not is_version_guarded(source, plain):
                yield source.finding(self, plain, _message(names[0]))
        for origin in source.nodes(ast.ImportFrom):
            yield from self._import(source, origin)
        for node in source.nodes(ast.Attribute):
            yield from self._attribute(source, node)

    def _import(self, source: SourceFile, node: ast.ImportFrom) -> Iterator[Finding]:
        module = node.module or ""
        if node.level or is_version_guarded(source, node):
            return
        if _is_removed_module(module):
            fix = self._renamed_import(source, node)
            yield source.finding(self, node, _message(module), fix=fix)
        elif _is_removed_module(f"{module}.{node.names[0].name}") and len(node.names) == 1:
            fix = self._moved_import(source, node)
            yield source.finding(self, node, _message(f"{module}.{node.names[0].name}"), fix=fix)
        elif any(alias.name == _REWRITE for alias in node.names) and module.startswith(_PACKAGES):
            yield self._rewrite(source, node, f"{module}.{_REWRITE}")

    def _renamed_import(self, source: SourceFile, node: ast.ImportFrom) -> Fix | None:
        """``from ...experimental import set_policy`` from the module of today, under the name that the file uses."""
        texts = []
        for alias in node.names:
            new = _SUCCESSORS.get(alias.name)
            bound = alias.asname or alias.name
            if new is None or any(not _keeps_meaning(source, use) for use in _uses(source, bound, node)):
                return None
            texts.append(new if new == bound else f"{new} as {bound}")
        module = (node.module or "").removesuffix(".experimental")
        text = f"from {module} import {', '.join(texts)}"
        return Fix(f"import from {module}", (edits.replace(source, node, text),))

    def _moved_import(self, source: SourceFile, node: ast.ImportFrom) -> Fix | None:
        """``from keras.mixed_precision import experimental as x`` and every use of x."""
        bound = node.names[0].asname or node.names[0].name
        package = (node.module or "").removesuffix(".mixed_precision")
        alias = "" if bound == "mixed_precision" else f" as {bound}"
        changes: list[Edit] = [edits.replace(source, node, f"from {package} import mixed_precision{alias}")]
        for use in _uses(source, bound, node):
            attribute = source.parent(use)
            if not isinstance(attribute, ast.Attribute) or not _keeps_meaning(source, attribute):
                return None
            new = _SUCCESSORS.get(attribute.attr)
            if new is None:
                return None
            if new != attribute.attr:
                changes.append(edits.replace(source, attribute, f"{bound}.{new}"))
        return Fix(f"import mixed_precision from {package}", tuple(changes))

    def _attribute(self, source: SourceFile, node: ast.Attribute) -> Iterator[Finding]:
        inner = node.value
        if node.attr == _REWRITE:
            for name in source.qualified(node):
                if name.startswith("tensorflow.") and not is_version_guarded(source, node):
                    yield self._rewrite(source, node, name)
                    return
        if not isinstance(inner, ast.Attribute) or inner.attr != "experimental" or is_version_guarded(source, node):
            return
        module = next((name for name in source.qualified(inner) if _is_removed_module(name)), None)
        if module is not None:
            new = _SUCCESSORS.get(node.attr) if _keeps_meaning(source, node) else None
            text = f"{source.segment(inner.value)}.{new}"
            fix = Fix(f"write {text}", (edits.replace(source, node, text),)) if new else None
            yield source.finding(self, node, _message(f"{module}.{node.attr}"), fix=fix)

    def _rewrite(self, source: SourceFile, node: ast.AST, name: str) -> Finding:
        old_api = ".compat." in name
        state = "works on graphs of TensorFlow 1 only" if old_api else "was removed in TensorFlow 2.4"
        message = f"{name} {state}: set tf.keras.mixed_precision.set_global_policy('mixed_float16')"
        return source.finding(self, node, message, severity=Severity.INFO if old_api else None)


def _is_removed_module(name: str) -> bool:
    return name.startswith(_PACKAGES) and name.endswith(_MODULE)


def _message(name: str) -> str:
    return f"{name} was removed after TensorFlow 2.4: use tf.keras.mixed_precision without experimental"


def _uses(source: SourceFile, bound: str, node: ast.ImportFrom) -> list[ast.Name]:
    """Reads of a name that an import binds."""
    return [
        name
        for name in source.nodes(ast.Name)
        if name.id == bound
        and isinstance(name.ctx, ast.Load)
        and any(item.node is node for item in source.bindings(name))
    ]


def _keeps_meaning(source: SourceFile, use: ast.expr) -> bool:
    """Whether the use is not a call with an argument that was removed (loss_scale)."""
    call = source.parent(use)
    if not isinstance(call, ast.Call) or call.func is not use:
        return True
    return len(call.args) <= 1 and all(keyword.arg in ("name", "policy") for keyword in call.keywords)
