"""The op table: one name for each op, whatever frontend or spelling it came through, and what precision does to it.

The autocast classes are those of ATen/autocast_mode.h in torch 2.13; CUDA and CPU differ.
"""

from __future__ import annotations

import dataclasses
import enum


class Autocast(enum.StrEnum):
    """What autocast does with an op's floating inputs."""

    LOWER = "lower"  # cast to the autocast dtype
    FP32 = "fp32"  # cast to float32
    FP32_OUT = "fp32-out"  # computed with dtype=float32 unless the call names a dtype
    PROMOTE = "promote"  # cast to the widest input
    ERROR = "error"  # raises
    FOLLOW = "follow"  # in no list: runs in what it is given


class Family(enum.StrEnum):
    """Groups of ops that cost and fail alike."""

    GEMM = "gemm"
    CONV = "conv"
    ATTENTION = "attention"
    RNN = "rnn"
    EMBEDDING = "embedding"
    NORM = "norm"
    SOFTMAX = "softmax"
    REDUCTION = "reduction"
    SENSITIVE = "sensitive"  # pointwise with a range or domain that 16 bits do not hold: exp, log, pow, rsqrt ...
    POINTWISE = "pointwise"
    POOL = "pool"
    LOSS = "loss"
    MEMORY = "memory"  # cat, index, gather, pad, copy: moves numbers, computes nothing
    VIEW = "view"  # no bytes moved
    CAST = "cast"
    LINALG = "linalg"
    FFT = "fft"
    CREATE = "create"
    RANDOM = "random"
    OTHER = "other"


@dataclasses.dataclass(frozen=True)
class Op:
    """One entry of the table.

    Attributes:
        name: our name, torch's functional name where there is one.
        family: see Family.
        cuda, cpu: autocast class on each device.
        same_dtype: raises when its floating inputs differ in dtype, so that their producers must agree.
        why_sensitive: what goes wrong in 16 bits, in words; empty when nothing does.
    """

    name: str
    family: Family
    cuda: Autocast = Autocast.FOLLOW
    cpu: Autocast = Autocast.FOLLOW
    same_dtype: bool = False
    why_sensitive: str = ""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FAMILIES: dict[Family, str] = {
    Family.GEMM: "linear matmul bmm mm mv addmm addbmm baddbmm addmv addr einsum chain_matmul linalg_multi_dot "
    "linalg_vecdot bilinear dot vdot tensordot scaled_mm grouped_mm",
    Family.CONV: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
    Family.ATTENTION: "scaled_dot_product_attention multi_head_attention flex_attention",
    Family.RNN: "lstm gru rnn lstm_cell gru_cell rnn_cell",
    Family.EMBEDDING: "embedding embedding_bag",
    Family.NORM: "layer_norm rms_norm group_norm batch_norm instance_norm local_response_norm",
    Family.SOFTMAX: "softmax log_softmax softmin logsumexp gumbel_softmax",
    Family.REDUCTION: "sum mean var std prod cumsum cumprod logcumsumexp norm linalg_vector_norm linalg_matrix_norm "
    "normalize cosine_similarity dist pdist cdist renorm var_mean std_mean max min amax amin argmax argmin aminmax "
    "all any median quantile topk sort count_nonzero cummax cummin",
    Family.SENSITIVE: "exp expm1 exp2 log log2 log10 log1p pow rsqrt sqrt reciprocal acos asin cosh sinh tan atanh "
    "acosh erfinv softplus logit logaddexp xlogy lgamma digamma i0",
    Family.POINTWISE: "add sub mul div neg abs relu relu6 gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid "
    "leaky_relu elu selu celu prelu logsigmoid erf clamp where masked_fill lerp addcmul addcdiv square sign floor "
    "ceil round sin cos atan atan2 maximum minimum remainder fmod dropout glu threshold softsign hypot "
    "eq ne lt le gt ge logical_and logical_or logical_not bitwise isnan isinf nan_to_num copysign floor_divide "
    "triu tril alpha_dropout fused_rms_norm_scale hardshrink softshrink tanhshrink polar complex view_as_complex "
    "cross diff",
    Family.POOL: "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool "
    "interpolate grid_sample pixel_shuffle",
    Family.LOSS: "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy "
    "binary_cross_entropy_with_logits ctc_loss cosine_embedding_loss hinge_embedding_loss margin_ranking_loss "
    "multi_margin_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss poisson_nll_loss gaussian_nll_loss",
    Family.MEMORY: "cat stack gather scatter scatter_add scatter_reduce index index_put index_add index_select "
    "index_copy masked_select masked_scatter pad roll flip repeat tile repeat_interleave clone contiguous copy one_hot "
    "unfold fold take_along_dim rot90 bincount nonzero unique searchsorted diag",
    Family.VIEW: "view reshape permute transpose squeeze unsqueeze expand flatten unflatten split chunk select slice "
    "narrow unbind detach movedim diagonal as_strided alias view_as_real t broadcast_tensors meshgrid",
    Family.CAST: "to type_as float half bfloat16",
    Family.LINALG: "cholesky qr svd solve inverse det slogdet eig eigh lstsq matrix_exp pinv lu",
    Family.FFT: "fft stft istft",
    Family.CREATE: "zeros ones full arange empty zeros_like ones_like full_like empty_like eye linspace window "
    "scalar_tensor tensor new_tensor new_zeros new_ones new_full new_empty",
    Family.RANDOM: "rand randn randint rand_like randn_like bernoulli multinomial normal uniform randperm",
}
_CUDA: dict[Autocast, str] = {
    Autocast.LOWER: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d addmm addmv addr matmul "
    "mm mv bmm baddbmm addbmm linear einsum chain_matmul linalg_multi_dot linalg_vecdot prelu lstm gru rnn lstm_cell "
    "gru_cell rnn_cell scaled_dot_product_attention multi_head_attention",
    # square and local_response_norm are in no list of their own: they end in pow, which is.
    Autocast.FP32: "acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow softplus "
    "square local_response_norm layer_norm rms_norm group_norm cosine_similarity dist pdist cdist renorm logsumexp "
    "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy_with_logits "
    "cosine_embedding_loss hinge_embedding_loss margin_ranking_loss multi_margin_loss multilabel_margin_loss "
    "soft_margin_loss triplet_margin_loss poisson_nll_loss gaussian_nll_loss interpolate",
    Autocast.FP32_OUT: "prod softmax log_softmax cumprod cumsum sum norm linalg_vector_norm linalg_matrix_norm "
    "normalize softmin",
    Autocast.PROMOTE: "addcdiv addcmul atan2 bilinear cross dot vdot grid_sample index_put tensordot scatter_add",
    Autocast.ERROR: "binary_cross_entropy",
}
_CPU: dict[Autocast, str] = {
    # einsum, tensordot and chain_matmul are in no list of their own: they end in bmm and mm, which are.
    Autocast.LOWER: "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bmm mm linalg_vecdot "
    "baddbmm addmm addbmm linear matmul einsum tensordot chain_matmul linalg_multi_dot prelu "
    "scaled_dot_product_attention flex_attention lstm multi_head_attention",
    Autocast.FP32: "mse_loss cosine_embedding_loss nll_loss cross_entropy l1_loss huber_loss smooth_l1_loss kl_div "
    "binary_cross_entropy binary_cross_entropy_with_logits margin_ranking_loss multi_margin_loss "
    "multilabel_margin_loss soft_margin_loss hinge_embedding_loss poisson_nll_loss triplet_margin_loss ctc_loss cdist "
    "grid_sample local_response_norm avg_pool3d max_pool3d adaptive_avg_pool3d adaptive_max_pool3d prod cholesky qr "
    "svd inverse solve eig eigh pinv lu lstsq stft istft fft view_as_complex",
    Autocast.PROMOTE: "stack cat index_copy",
}
_SAME_DTYPE = frozenset(
    _names(
        "linear matmul bmm mm mv addmm addbmm baddbmm addmv einsum linalg_multi_dot bilinear dot tensordot conv1d "
        "conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention "
        "multi_head_attention flex_attention index_put index_add index_copy scatter_add scatter_reduce "
        "scatter lerp masked_scatter cdist grid_sample polar complex"
    )
)
_WHY = {
    "exp": "exceeds 65504 in fp16 from inputs of 11.09; rounding its input is a relative error in bf16",
    "expm1": "exceeds 65504 in fp16 for inputs over 11.09",
    "exp2": "exceeds 65504 in fp16 for inputs of 16 or more",
    "log": "inputs below 6e-8 are zero in fp16, so the result is -inf",
    "log2": "inputs below 6e-8 are zero in fp16, so the result is -inf",
    "log10": "inputs below 6e-8 are zero in fp16, so the result is -inf",
    "log1p": "inputs below half an epsilon are lost",
    "pow": "squares over 65504 overflow in fp16 from |x| > 255.9",
    "square": "overflows in fp16 from |x| > 255.9",
    "rsqrt": "inputs below 6e-8 are zero in fp16, so the result is inf",
    "sqrt": "its gradient at zero is infinite, and inputs below 6e-8 are zero in fp16",
    "reciprocal": "overflows in fp16 for |x| < 1.5e-5",
    "softplus": "the exponential inside exceeds 65504 in fp16 for inputs over 11.09",
    "softmax": "the sum of exponentials loses digits when the result is rounded to 16 bits",
    "log_softmax": "its result needs more digits than bf16's 8 bits for the loss to be right",
    "logsumexp": "the sum of exponentials loses digits",
    "sum": "long sums pass 65504 in fp16 and lose digits in bf16",
    "mean": "the result of a long mean keeps 3 digits in bf16",
    "var": "squares of deviations over 256 overflow in fp16",
    "std": "squares of deviations over 256 overflow in fp16",
    "prod": "products leave fp16's range within a few factors",
    "cumsum": "every partial sum is rounded: errors grow with the length, and sums pass 65504 in fp16",
    "cumprod": "every partial product is rounded, and leaves fp16's range within a few factors",
    "logcumsumexp": "every partial sum is rounded",
    "norm": "squares over 65504 overflow in fp16 from |x| > 255.9",
    "linalg_vector_norm": "squares over 65504 overflow in fp16 from |x| > 255.9",
    "linalg_matrix_norm": "squares over 65504 overflow in fp16 from |x| > 255.9",
    "normalize": "its eps of 1e-12 is zero in fp16: a zero vector gives NaN",
    "cosine_similarity": "its eps of 1e-8 is zero in fp16",
    "cdist": "squares over 65504 overflow in fp16, and there is no half kernel",
    "var_mean": "squares of deviations over 256 overflow in fp16",
    "std_mean": "squares of deviations over 256 overflow in fp16",
    "acos": "the domain ends at 1, and numbers near it round to 1",
    "asin": "the domain ends at 1, and numbers near it round to 1",
    "atanh": "infinite at 1, and numbers near it round to 1",
    "erfinv": "infinite at 1, and numbers near it round to 1",
    "logit": "infinite at 0 and 1, and numbers near them round to them",
    "cosh": "exceeds 65504 in fp16 for |x| > 11.7",
    "i0": "exceeds 65504 in fp16 for |x| > 13.2",
    "sinh": "exceeds 65504 in fp16 for |x| > 11.7",
    "tan": "unbounded near its poles",
    "cross_entropy": "the log of the sum of exponentials needs more than 16 bits",
    "nll_loss": "a loss is a long mean: it keeps 3 digits in bf16",
    "kl_div": "differences of logarithms cancel",
    "mse_loss": "squares over 65504 overflow in fp16 from |x| > 255.9",
    "binary_cross_entropy": "log of a probability that rounds to 0 or 1 is infinite",
    "binary_cross_entropy_with_logits": "a loss is a long mean: it keeps 3 digits in bf16",
    "ctc_loss": "sums of products of probabilities underflow",
    "renorm": "squares over 65504 overflow in fp16 from |x| > 255.9",
    "dist": "squares over 65504 overflow in fp16 from |x| > 255.9",
    "pdist": "squares over 65504 overflow in fp16 from |x| > 255.9",
}


def _class_by_name(table: dict[Autocast, str]) -> dict[str, Autocast]:
    """The first policy of the table that lists each name."""
    return {name: policy for policy, names in reversed(table.items()) for name in names.split()}


_CUDA_CLASS, _CPU_CLASS = _class_by_name(_CUDA), _class_by_name(_CPU)
OPS: dict[str, Op] = {
    name: Op(
        name, family, _CUDA_CLASS.get(name, Autocast.FOLLOW), _CPU_CLASS.get(name, Autocast.FOLLOW),
        name in _SAME_DTYPE, _WHY.get(name, ""),
    )
    for family, names in _FAMILIES.items()
    for name in _names(names)
}  # fmt: skip
"""Op name -> entry. A frontend maps every spelling (aten overload, function, method, operator) to one of these."""

UNKNOWN = Op("unknown", Family.OTHER)


def op_named(name: str) -> Op:
    """The entry called ``name``, or an entry of family OTHER that carries the name, for an op outside the table."""
    return OPS.get(name) or Op(name, Family.OTHER)


def raised_by_autocast(name: str, device_type: str) -> bool:
    """Whether autocast on "cuda" or "cpu" computes the op in FP32."""
    op = op_named(name)
    return (op.cpu if device_type == "cpu" else op.cuda) in (Autocast.FP32, Autocast.FP32_OUT)


def lowered_by_autocast(name: str, device_type: str) -> bool:
    """Whether autocast on "cuda" or "cpu" casts the op's floating inputs to its 16-bit format."""
    op = op_named(name)
    return (op.cpu if device_type == "cpu" else op.cuda) is Autocast.LOWER


def joined_by_autocast(name: str, device_type: str) -> bool:
    """Whether autocast on "cuda" or "cpu" casts floating inputs of the op that differ in dtype to one."""
    op = op_named(name)
    return (op.cpu if device_type == "cpu" else op.cuda) not in (Autocast.FOLLOW, Autocast.ERROR)
