"""AMP509: methods of the LossScaleOptimizer that Keras 3 does not have."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Edit, Finding, Fix, Safety, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint import edits
from amptune.lint.source import SourceFile
from amptune_rules.source._deprecated import is_version_guarded
from amptune_rules.source._keras import imported_modules, uses_keras_3, uses_legacy_keras

_METHODS = ("get_scaled_loss", "get_unscaled_gradients")
_INSTEAD = {
    "get_scaled_loss": "call scale_loss",
    "get_unscaled_gradients": "drop the call, apply_gradients divides by the scale itself",
}


class Keras3GetScaledLoss(SourceRule):
    """A loop calls get_scaled_loss or get_unscaled_gradients, which Keras 3 does not have.

    ## What it does
    Flags the two methods: an error in a file that is certainly for Keras 3 (it uses `keras.ops`, `keras.config`,
    `KERAS_BACKEND` and the like), else a warning, as TensorFlow 2.16 and later bring Keras 3. Silent with `tf_keras`,
    `TF_USE_LEGACY_KERAS`, the removed `experimental` module, a version check, or classes that define the methods.

    ## Why is this bad
    `AttributeError: 'LossScaleOptimizer' object has no attribute 'get_scaled_loss'` at the first step. Keras 3 has
    `scale_loss`, and its optimizer divides the gradients itself when it applies them.

    ## Example
    ```python
    import keras
    import tensorflow as tf
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam())
    with tf.GradientTape() as tape:
        scaled = optimizer.get_scaled_loss(keras.ops.mean(model(x) - y))
    gradients = optimizer.get_unscaled_gradients(tape.gradient(scaled, model.trainable_variables))
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    ```

    ## Use instead
    ```python
    import keras
    import tensorflow as tf
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam())
    with tf.GradientTape() as tape:
        scaled = optimizer.scale_loss(keras.ops.mean(model(x) - y))
    gradients = tape.gradient(scaled, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    ```

    ## Fix safety
    Unsafe: the code no longer runs with Keras 2. Gradients that are clipped or logged between the two calls are still
    scaled afterwards. All calls of the file are changed together.

    ## References
    - https://keras.io/api/mixed_precision/
    """

    code = "AMP509"
    name = "keras3-get-scaled-loss"
    severity = Severity.ERROR
    keywords = tuple(method.encode() for method in _METHODS)

    INVALID = (
        Example(
            "in a file for Keras 3",
            """\
import keras
import tensorflow as tf
from keras import ops

optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam())

def step(model, x, y):
    with tf.GradientTape() as tape:
        loss = ops.mean(model(x) - y)
        scaled_loss = optimizer.get_scaled_loss(loss)  # <- AMP509@23
    scaled = tape.gradient(scaled_loss, model.trainable_variables)
    gradients = optimizer.get_unscaled_gradients(scaled)  # <- AMP509@17
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
""",
            fixed="""\
import keras
import tensorflow as tf
from keras import ops

optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam())

def step(model, x, y):
    with tf.GradientTape() as tape:
        loss = ops.mean(model(x) - y)
        scaled_loss = optimizer.scale_loss(loss)
    scaled = tape.gradient(scaled_loss, model.trainable_variables)
    gradients = scaled
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
""",
        ),
        Example(
            "through tf.keras, whichever Keras that is",
            """\
import tensorflow as tf

class Model(tf.keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.optimizer.get_scaled_loss(self.compiled_loss(y, self(x)))  # <- AMP509
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
""",
            fixed="""\
import tensorflow as tf

class Model(tf.keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.optimizer.scale_loss(self.compiled_loss(y, self(x)))
        self.optimizer.minimize(loss, self.trainable_variables, tape=tape)
""",
        ),
    )
    VALID = (
        Example(
            "what Keras 3 has",
            """\
import keras

def scaled(optimizer: keras.mixed_precision.LossScaleOptimizer, loss):
    return optimizer.scale_loss(loss)  # get_scaled_loss in Keras 2
""",
        ),
        Example(
            "the package of Keras 2",
            """\
import tf_keras as keras

def scaled(optimizer, loss):
    return optimizer.get_scaled_loss(loss)
""",
        ),
        Example(
            "whatever the optimizer has",
            """\
import tensorflow as tf

def scaled(optimizer, loss):
    if hasattr(optimizer, "get_scaled_loss"):
        return optimizer.get_scaled_loss(loss)
    return optimizer.scale_loss(loss)
""",
        ),
        Example(
            "a class with such a method",
            """\
import tensorflow as tf

class Scaler:
    def get_scaled_loss(self, loss):
        return loss * 128.0

scaled = Scaler().get_scaled_loss(tf.constant(1.0))
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Calls of the two methods."""
        if not any(module.startswith(("tensorflow", "keras")) for module in imported_modules(source)):
            return
        calls = [call for call in source.method_calls(*_METHODS) if not is_version_guarded(source, call)]
        if not calls or uses_legacy_keras(source) or _is_older(source):
            return
        severity = None if uses_keras_3(source) else Severity.WARNING
        fix = _fix(source, calls)
        for call in calls:
            assert isinstance(call.func, ast.Attribute)
            method = call.func.attr
            message = f"Keras 3 has no {method} (AttributeError): {_INSTEAD[method]}"
            yield source.finding(self, call, message, severity=severity, fix=fix)


def _is_older(source: SourceFile) -> bool:
    """Whether the file is for the first mixed precision of TensorFlow, or has the methods in a class of its own."""
    if any("mixed_precision" in module and "experimental" in module for module in imported_modules(source)):
        return True
    defined = any(function.name in _METHODS for function in source.nodes(ast.FunctionDef))
    experimental = (node for node in source.nodes(ast.Attribute) if node.attr == "experimental")
    return defined or any(
        name.endswith("mixed_precision.experimental") for n in experimental for name in source.qualified(n)
    )


def _fix(source: SourceFile, calls: list[ast.Call]) -> Fix | None:
    changes: list[Edit] = []
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        if len(call.args) != 1 or call.keywords or isinstance(call.args[0], ast.Starred):
            return None
        if call.func.attr == "get_unscaled_gradients":
            if any(other is not call and _holds(source, call, other) for other in calls):
                return None
            changes.append(edits.replace(source, call, source.segment(call.args[0])))
        else:
            changes.append(edits.replace(source, call.func, f"{source.segment(call.func.value)}.scale_loss"))
    return Fix("write the calls of Keras 3", tuple(changes), Safety.UNSAFE)


def _holds(source: SourceFile, outer: ast.Call, inner: ast.Call) -> bool:
    return any(ancestor is outer for ancestor in source.ancestors(inner))
