"""Other spellings of the ops in the table: aten overloads, operators, and torch's own aliases.

Complements :mod:`amptune.core.spellings`, which holds those that people write. Spellings stand here without leading and
trailing underscores.
"""

from __future__ import annotations

from collections.abc import Mapping

_SPELLINGS: Mapping[str, str] = {
    # arithmetic
    "add": "radd iadd",
    "sub": "rsub isub",
    "mul": "rmul imul",
    "div": "truediv rtruediv itruediv rdiv idiv",
    "floor_divide": "floordiv rfloordiv ifloordiv",
    "remainder": "mod rmod imod",
    "pow": "rpow ipow",
    "matmul": "rmatmul imatmul",
    "bitwise": "and or xor rand ror rxor iand ior ixor invert lshift rshift bitwise_and bitwise_or bitwise_xor "
    "bitwise_not bitwise_left_shift bitwise_right_shift",
    "eq": "equal isclose isin",
    "isnan": "isfinite isinf isposinf isneginf",
    "where": "heaviside",
    "round": "trunc frac",
    "sign": "sgn signbit",
    "xlogy": "xlog1py entr",
    "logaddexp": "logaddexp2",
    "lgamma": "mvlgamma multigammaln",
    "digamma": "polygamma",
    "minimum": "fmin",
    "maximum": "fmax",
    "sin": "sinc",
    "atan2": "angle",
    "cross": "linalg_cross",
    "erf": "erfc ndtr",
    "logsigmoid": "log_sigmoid log_sigmoid_forward log_ndtr",
    "dropout": "feature_dropout native_dropout",
    "leaky_relu": "rrelu rrelu_with_noise",
    "any": "is_nonzero",
    # matrix products
    "tensordot": "kron",
    "scaled_mm": "scaled_mm_v2 scaled_grouped_mm scaled_grouped_mm_v2",
    "grouped_mm": "grouped_mm_fallback",
    # norms, softmax, attention, recurrent layers
    "layer_norm": "native_layer_norm",
    "group_norm": "native_group_norm",
    "rms_norm": "fused_rms_norm",
    "batch_norm": "native_batch_norm native_batch_norm_legit native_batch_norm_legit_no_training cudnn_batch_norm "
    "miopen_batch_norm batch_norm_with_update sync_batch_norm",
    "softmax": "safe_softmax",
    "normalize": "weight_norm weight_norm_interface",
    "multi_head_attention": "native_multi_head_attention transformer_encoder_layer_fwd",
    "rnn": "rnn_tanh rnn_relu",
    "rnn_cell": "rnn_tanh_cell rnn_relu_cell",
    "lstm_cell": "thnn_fused_lstm_cell",
    "gru_cell": "thnn_fused_gru_cell",
    "scaled_dot_product_attention": "flash_attention_forward efficient_attention_forward",
    # losses
    "cross_entropy": "cross_entropy_loss linear_cross_entropy",
    "nll_loss": "nll_loss_nd nll_loss2d nll_loss_forward nll_loss2d_forward",
    "multilabel_margin_loss": "multilabel_soft_margin_loss multilabel_margin_loss_forward",
    "triplet_margin_loss": "triplet_margin_with_distance_loss",
    # reductions
    "sum": "nansum sum_to_size trace trapezoid trapz cumulative_trapezoid",
    "mean": "nanmean",
    "median": "nanmedian kthvalue mode",
    "quantile": "nanquantile",
    "sort": "argsort msort",
    "norm": "norm_except_dim linalg_norm",
    "linalg_matrix_norm": "frobenius_norm nuclear_norm",
    "dist": "pairwise_distance",
    "cdist": "cdist_forward euclidean_dist",
    # pooling
    "max_pool1d": "max_pool1d_with_indices",
    "max_pool2d": "max_pool2d_with_indices fractional_max_pool2d fractional_max_pool2d_with_indices max_unpool2d",
    "max_pool3d": "max_pool3d_with_indices fractional_max_pool3d fractional_max_pool3d_with_indices max_unpool3d",
    "adaptive_max_pool1d": "adaptive_max_pool1d_with_indices",
    "adaptive_max_pool2d": "adaptive_max_pool2d_with_indices",
    "adaptive_max_pool3d": "adaptive_max_pool3d_with_indices",
    "grid_sample": "grid_sampler grid_sampler_2d grid_sampler_3d affine_grid affine_grid_generator",
    "pixel_shuffle": "pixel_unshuffle channel_shuffle native_channel_shuffle",
    # moving numbers
    "cat": "dstack column_stack row_stack block_diag cartesian_prod combinations",
    "index": "unsafe_index take pack_padded_sequence pad_packed_sequence",
    "index_put": "unsafe_index_put index_fill index_copy masked_put put index_reduce slice_scatter select_scatter "
    "diagonal_scatter as_strided_scatter fill_diagonal",
    "pad": "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d pad_sequence pad_circular",
    "flip": "fliplr flipud",
    "fold": "col2im",
    "diag": "diag_embed",
    "unfold": "im2col unfold_copy",
    "copy": "fill zero set resize resize_as lift_fresh_copy slice_copy to_dense",
    "unique": "unique2 unique_consecutive unique_dim",
    "bincount": "histc histogram histogramdd",
    "nonzero": "argwhere nonzero_static",
    "searchsorted": "bucketize",
    # views
    "view": "unsafe_view",
    "permute": "T mT H mH adjoint numpy_T matrix_H",
    "flatten": "ravel",
    "expand": "atleast_1d atleast_2d atleast_3d",
    "split": "split_with_sizes dsplit unsafe_split unsafe_split_with_sizes",
    "chunk": "unsafe_chunk",
    "slice": "narrow_copy",
    "detach": "data requires_grad real imag conj resolve_conj resolve_neg conj_physical refine_names rename align_to "
    "pin_memory share_memory retain_grad lift_fresh",
    "alias": "values indices",
    "to": "to_copy cpu cuda int long short bool char byte cdouble cfloat chalf xpu mps npu convert_element_type "
    "autocast_to_reduced_precision autocast_to_full_precision",
    "contiguous": "force_contiguous",
    # linear algebra
    "inverse": "linalg_inv linalg_inv_ex cholesky_inverse",
    "cholesky": "linalg_cholesky linalg_cholesky_ex",
    "qr": "linalg_qr",
    "svd": "linalg_svd linalg_svdvals svdvals",
    "solve": "linalg_solve linalg_solve_ex triangular_solve linalg_solve_triangular cholesky_solve lu_solve "
    "linalg_lu_solve linalg_tensorsolve",
    "det": "linalg_det logdet",
    "slogdet": "linalg_slogdet",
    "eig": "linalg_eig linalg_eigvals",
    "eigh": "linalg_eigh linalg_eigvalsh",
    "lstsq": "linalg_lstsq",
    "matrix_exp": "linalg_matrix_exp matrix_power linalg_matrix_power",
    "pinv": "linalg_pinv pinverse linalg_tensorinv",
    "lu": "linalg_lu linalg_lu_factor lu_unpack linalg_ldl_factor",
    # new tensors
    "arange": "range tril_indices triu_indices",
    "linspace": "logspace",
    "window": "hann_window hamming_window kaiser_window blackman_window bartlett_window",
    "randint": "randint_like",
    "empty": "empty_strided empty_permuted new_empty_strided",
    "tensor": "as_tensor asarray from_numpy",
    "normal": "log_normal cauchy poisson exponential geometric random kaiming_normal xavier_normal trunc_normal",
    "uniform": "kaiming_uniform xavier_uniform",
}

OP_OF_ALIAS: Mapping[str, str] = {alias: op for op, aliases in _SPELLINGS.items() for alias in aliases.split()}
"""Spelling -> op of the table."""

OP_OF_PREFIX: Mapping[str, str] = {
    "scaled_dot_product_": "scaled_dot_product_attention",
    "upsample_": "interpolate",
    "fft_": "fft",
}
"""Families of aten names that are one op."""

IGNORED_PREFIXES = ("special_", "foreach_", "linalg_")
"""Namespaces whose names are those of the table."""
