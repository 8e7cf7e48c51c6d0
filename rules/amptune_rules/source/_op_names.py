"""Names of torch functions and tensor methods, by what their result is."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SCALARS = _words("item size numel dim tolist nelement ndimension element_size stride get_device")
"""Methods that give Python numbers."""

SCALAR_ATTRIBUTES = _words("shape ndim dtype device is_cuda requires_grad training layout")

EXACT = _words(
    "argmax argmin argsort nonzero count_nonzero eq ne lt le gt ge isnan isinf isfinite logical_and logical_or "
    "logical_not logical_xor bincount searchsorted randint randperm one_hot any all unique_consecutive allclose "
    "equal isclose is_floating_point multinomial"
)
"""Ops that give integers or booleans."""

MADE = _words(
    "zeros ones full empty eye linspace logspace arange rand randn tensor as_tensor scalar_tensor normal "
    "hann_window hamming_window from_numpy FloatTensor randn_like rand_like zeros_like ones_like full_like empty_like "
    "new_zeros new_ones new_full new_empty new_tensor randint_like"
)
"""Ops that make a tensor: float32, or as the tensor they are like."""

OF_SEVERAL = _words(
    "cat concat concatenate stack hstack vstack add sub mul div subtract multiply divide maximum minimum max min lerp "
    "addcmul addcdiv atan2 hypot where index_add scatter_add scatter baddbmm logaddexp xlogy"
)
"""Ops whose result has the precision of all their arguments, not of the first alone."""

COMPOSED_FP32 = _words("square gumbel_softmax pairwise_distance")
"""Ops that are in no autocast list of their own, but are made of one that CUDA autocast runs in float32."""
