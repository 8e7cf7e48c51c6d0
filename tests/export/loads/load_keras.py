"""Keras with the jax backend: policies by path, a layer that computes in its own, the loss scale."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import keras
import loading
import numpy as np

NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8_e4m3": "bfloat16"}

for case in loading.cases():
    exported = case.module("keras_policy")
    policies = exported.policy_map()
    for path, site in case.plan.sites.items():
        if path and "#" not in path:
            policy = policies[path.replace(".", "/")]
            assert (policy.variable_dtype, policy.compute_dtype) == ("float32", NAMES[site.format.label])
            assert (policy.quantization_mode == "float8") == site.format.is_fp8
    with keras.name_scope("blocks"), keras.name_scope("1"):
        layer = keras.layers.Dense(4, name="fc1")
    layer.build((None, 4)) if layer.path == "blocks/1/fc1" else None
    dense = keras.layers.Dense(4, dtype=policies["blocks/1/fc1"])
    output = dense(np.ones((2, 4), "float32"))
    expected = case.plan.sites.get("blocks.1.fc1")
    assert keras.backend.standardize_dtype(output.dtype) == (NAMES[expected.format.label] if expected else "bfloat16")
    scaler = exported.optimizer(keras.optimizers.Adam())
    if case.plan.scaler.enabled:
        assert (scaler.initial_scale, scaler.dynamic_growth_steps) == (
            case.plan.scaler.init_scale, case.plan.scaler.growth_interval,
        )  # fmt: skip
    else:
        assert not isinstance(scaler, keras.optimizers.LossScaleOptimizer)
