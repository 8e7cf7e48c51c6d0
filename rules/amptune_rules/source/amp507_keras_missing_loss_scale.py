"""AMP507: a custom Keras training loop in mixed_float16 that does not scale its loss."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amptune.core.finding import Finding, Severity
from amptune.core.rule import Example, SourceRule
from amptune.lint.index import last_name
from amptune.lint.source import SourceFile

_POLICIES = frozenset({"set_global_policy", "set_policy", "set_dtype_policy", "Policy", "DTypePolicy"})
_SCALING = ("get_scaled_loss", "scale_loss", "get_unscaled_gradients")
_APPLY = frozenset({"apply_gradients", "apply"})


class KerasMissingLossScale(SourceRule):
    """A GradientTape loop under the mixed_float16 policy applies gradients of a loss that was not scaled.

    ## What it does
    In a file that sets the `mixed_float16` policy, flags `tape.gradient(...)` in a function that applies the gradients,
    when nothing in the file scales a loss (`get_scaled_loss` of Keras 2, `scale_loss` of Keras 3).

    ## Why is this bad
    Gradients under 3e-8 are zero in float16. `model.fit` scales the loss by itself, a loop of one's own has to. With
    the LossScaleOptimizer of Keras 3 it is worse: `apply_gradients` divides by the scale (32768 at first) what was
    never multiplied by it.

    ## Example
    ```python
    import tensorflow as tf
    tf.keras.mixed_precision.set_global_policy("mixed_float16")

    def step(model, optimizer, x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    ```

    ## Use instead
    ```python
    import tensorflow as tf
    tf.keras.mixed_precision.set_global_policy("mixed_float16")

    def step(model, optimizer, x, y):
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x))
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
    ```

    ## Fix safety
    No fix: the optimizer has to be wrapped in LossScaleOptimizer as well, and the calls differ between Keras 2 and 3.

    ## References
    - https://www.tensorflow.org/guide/mixed_precision
    - https://keras.io/api/mixed_precision/
    """

    code = "AMP507"
    name = "keras-missing-loss-scale"
    severity = Severity.ERROR
    keywords = (b"mixed_float16",)

    INVALID = (
        Example(
            "a loop of one's own",
            """\
import tensorflow as tf
from tensorflow.keras import mixed_precision

policy = mixed_precision.Policy("mixed_float16")
mixed_precision.set_global_policy(policy)
optimizer = tf.keras.optimizers.Adam()

@tf.function
def train_step(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) - y)
    gradients = tape.gradient(loss, model.trainable_variables)  # <- AMP507@17
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
""",
        ),
        Example(
            "train_step of a model, the optimizer wrapped but not asked to scale",
            """\
import keras
import tensorflow as tf

keras.mixed_precision.set_dtype_policy("mixed_float16")

class Model(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables))  # <- AMP507@30
        return {"loss": loss}

model = Model()
model.compile(optimizer=keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam()))
""",
        ),
    )
    VALID = (
        Example(
            "scaled, as Keras 2 has it",
            """\
import tensorflow as tf

tf.keras.mixed_precision.set_global_policy("mixed_float16")
optimizer = tf.keras.mixed_precision.LossScaleOptimizer(tf.keras.optimizers.Adam())

def train_step(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) - y)
        scaled_loss = optimizer.get_scaled_loss(loss)  # <- AMP509
    scaled = tape.gradient(scaled_loss, model.trainable_variables)
    gradients = optimizer.get_unscaled_gradients(scaled)  # <- AMP509
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
""",
        ),
        Example(
            "model.fit scales by itself",
            """\
import tensorflow as tf

tf.keras.mixed_precision.set_global_policy("mixed_float16")
model = tf.keras.Sequential([tf.keras.layers.Dense(8)])
model.compile(optimizer="adam", loss="mse")
model.fit(x, y)
""",
        ),
        Example(
            "bfloat16",
            """\
import tensorflow as tf

tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")  # mixed_float16 is for GPUs

def train_step(model, optimizer, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) - y)
    gradients = tape.gradient(loss, model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables))
""",
        ),
        Example(
            "gradients that are looked at, not applied",
            """\
import tensorflow as tf

tf.keras.mixed_precision.set_global_policy("mixed_float16")

def saliency(model, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        score = tf.reduce_max(model(x))
    return tape.gradient(score, x)
""",
        ),
    )

    def check(self, source: SourceFile) -> Iterator[Finding]:
        """Gradients that a function takes from a tape and applies."""
        if not _sets_policy(source) or source.method_calls(*_SCALING):
            return
        tapes = {name for block in source.nodes(ast.With) for name in _tape_names(block)}
        for call in source.method_calls("gradient"):
            assert isinstance(call.func, ast.Attribute)
            is_tape = isinstance(call.func.value, ast.Name) and call.func.value.id in tapes
            if is_tape and _is_applied(source, call) and not _in_test(source, call):
                message = (
                    "under mixed_float16 the gradients of a loss that is not scaled underflow below 3e-8: "
                    "wrap the optimizer in LossScaleOptimizer and scale the loss "
                    "(scale_loss, in Keras 2 get_scaled_loss)"
                )
                yield source.finding(self, call, message)


def _sets_policy(source: SourceFile) -> bool:
    """Whether the file makes or sets the mixed_float16 policy."""
    named = [call for call in source.nodes(ast.Call) if last_name(call.func) in _POLICIES]
    calls = [call for call in named if not _in_test(source, call)]
    arguments = [item for call in calls for item in (*call.args[:1], *(keyword.value for keyword in call.keywords))]
    leaves = [leaf for item in arguments for leaf in source.values(item)]
    return any(isinstance(leaf, ast.Constant) and leaf.value == "mixed_float16" for leaf in leaves)


def _tape_names(block: ast.With) -> Iterator[str]:
    for item in block.items:
        match item:
            case ast.withitem(context_expr=ast.Call(func=func), optional_vars=ast.Name(id=name)):
                if last_name(func) == "GradientTape":
                    yield name


def _in_test(source: SourceFile, node: ast.AST) -> bool:
    """Whether the code is part of a test, which sets a policy for itself alone."""
    return any(
        (isinstance(item, ast.FunctionDef) and item.name.startswith("test"))
        or (isinstance(item, ast.ClassDef) and any(last_name(base).endswith("TestCase") for base in item.bases))
        for item in source.ancestors(node)
    )


def _is_applied(source: SourceFile, gradient: ast.Call) -> bool:
    """Whether the function that takes the gradient also applies gradients."""
    function = source.function_of(gradient)
    applies = [call for call in source.method_calls(*_APPLY) if source.function_of(call) is function]
    return any(
        isinstance(call.func, ast.Attribute)
        and (call.func.attr == "apply_gradients" or source.kind(call.func.value) == "optimizer")
        for call in applies
    )
