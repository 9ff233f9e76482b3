"""What a program of torch.export may call, and what is checked before a kernel gets it.

A target is looked up in a list of operators that compute and nothing else. They are functions of
their operands: none draws random numbers, none has a result whose size depends on values, none
reads or writes anything but tensors. Those that write to their first operand (`relu_`) may do so,
unless it is a weight. Whatever else a file names is refused before anything runs.

Some kernels trust what they get, and read or write beside it where it is wrong. What those trust is
checked here at each call. Others leave memory as they find it, which they get as zeros.
"""

# An operator's schema has no public name.
# pyright: reportPrivateUsage=false
from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kubestill.errors import CorruptData
from kubestill.runtime.models.foreign.pt2_graph import Call, Operand, refuse

# By what they do. An operator's overloads are all meant (`add.Tensor`, `add.Scalar`).
OPERATORS = frozenset(
    """
    abs acos acosh add addcdiv addcmul alias angle asin asinh atan atan2 atanh bitwise_and
    bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp
    clamp_max clamp_min clip conj copysign cos cosh deg2rad digamma div divide elu eq erf erfc
    erfinv exp exp2 expm1 fix floor floor_divide fmax fmin fmod frac gelu glu greater greater_equal
    gt ge hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 isclose isfinite isinf isnan
    isneginf isposinf ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2
    log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt
    masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative nextafter not_equal
    polygamma positive pow prelu rad2deg real reciprocal relu relu6 remainder round rsqrt rsub
    rrelu selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink special_entr
    special_erf special_erfc special_expit special_expm1 special_log1p special_logit
    special_ndtr special_xlogy sqrt square sub subtract tan tanh threshold true_divide trunc where
    xlogy __and__ __lshift__ __or__ __rshift__ __xor__

    addbmm addmm addmv addr baddbmm bilinear bmm cdist chain_matmul conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution
    cosine_similarity cross dot einsum inner kron linalg_cross linalg_matmul linalg_norm
    linalg_vecdot linalg_vector_norm linear matmul mm mv norm outer pairwise_distance tensordot
    trapezoid trace vdot _cdist_forward _euclidean_dist _trilinear

    all amax amin aminmax any argmax argmin argsort cummax cummin cumprod cumsum dist
    frobenius_norm histc kthvalue log_softmax logcumsumexp logsumexp max mean median min msort
    nanmean nanmedian nansum nuclear_norm prod quantile nanquantile softmax sort std
    std_mean sum topk var var_mean _log_softmax _softmax _safe_softmax special_log_softmax
    special_softmax count_nonzero

    alpha_dropout dropout feature_alpha_dropout feature_dropout batch_norm group_norm instance_norm
    layer_norm native_batch_norm native_group_norm native_layer_norm
    _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update
    rms_norm _fused_rms_norm renorm _weight_norm _weight_norm_interface
    embedding embedding_bag _embedding_bag _embedding_bag_forward_only one_hot
    gru gru_cell lstm lstm_cell rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
    scaled_dot_product_attention _scaled_dot_product_attention_math
    _scaled_dot_product_flash_attention_for_cpu

    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d
    max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    max_unpool2d max_unpool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    affine_grid_generator grid_sampler grid_sampler_2d grid_sampler_3d
    pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im unfold
    unfold_copy
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d _pad_circular _pad_enum

    as_strided as_strided_copy atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors
    broadcast_to bucketize cat chunk clone column_stack concat concatenate contiguous
    copy detach diag diag_embed diagonal diagonal_scatter dsplit dstack expand expand_as fill
    flatten flip fliplr flipud gather hsplit hstack index index_add index_copy index_fill index_put
    index_reduce index_select isin lift_fresh lift_fresh_copy masked_scatter meshgrid moveaxis
    movedim mT mH narrow numpy_T permute ravel repeat repeat_interleave reshape reshape_as roll
    rot90 scatter scatter_add scatter_reduce searchsorted select select_scatter slice slice_scatter
    split split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor_split tile
    to transpose tril triu type_as unbind unflatten unsafe_chunk unsafe_split
    unsafe_split_with_sizes unsqueeze vander view view_as view_as_complex view_as_real vsplit
    vstack zero _conj _to_copy _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_view resolve_conj resolve_neg diagonal_copy expand_copy permute_copy select_copy
    slice_copy squeeze_copy t_copy transpose_copy unsqueeze_copy view_copy alias_copy detach_copy
    split_copy split_with_sizes_copy unbind_copy

    arange empty empty_like empty_strided eye full full_like linspace logspace new_empty
    new_empty_strided new_full new_ones new_zeros ones ones_like
    scalar_tensor tril_indices triu_indices zeros zeros_like bartlett_window blackman_window
    hamming_window hann_window kaiser_window complex polar fft_fft fft_ifft fft_rfft fft_irfft
    fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift
    fft_ifftshift fft_fftfreq fft_rfftfreq _fft_c2c _fft_c2r _fft_r2c imag

    fake_quantize_per_channel_affine fake_quantize_per_tensor_affine
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    sym_numel sym_size sym_storage_offset sym_stride sym_is_contiguous
    _assert_async _assert_scalar _assert_tensor_metadata sym_constrain_range
    sym_constrain_range_for_size
    """.split()
)
"""Of the namespace `aten`. Those that write to their first operand have `_` at the end."""


def _of_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def compute(*numbers: Any) -> Any:
        if not all(isinstance(one, int | float) for one in numbers):
            raise TypeError("sizes are computed of numbers")
        found = function(*numbers)
        if abs(found) >= 1 << 63:
            raise ValueError("a size takes more than 64 bits")
        return found

    return compute


SIZES: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": _of_numbers(getattr(operator, name))
        for name in "add sub mul floordiv mod neg truediv eq ne lt le gt ge and_ or_".split()
    },
    "torch.sym_max": _of_numbers(max),
    "torch.sym_min": _of_numbers(min),
    "torch.sym_not": _of_numbers(operator.not_),
    "torch.sym_int": _of_numbers(int),
    "torch.sym_float": _of_numbers(float),
    "math.ceil": _of_numbers(math.ceil),
    "math.floor": _of_numbers(math.floor),
    "math.trunc": _of_numbers(math.trunc),
}
"""What computes sizes, on numbers."""
_TARGET = re.compile(r"torch\.ops\.aten\.(\w{1,80})\.(\w{1,60})")
_CONSTANTS = {
    "ScalarType": torch.dtype,
    "MemoryFormat": torch.memory_format,
    "Layout": torch.layout,
}
_TRAINING = ("training", "train", "use_input_stats")


def is_written(argument: Any) -> bool:
    """Return whether an operator writes to an argument of its schema."""
    return argument.alias_info is not None and argument.alias_info.is_write


def find_operator(target: str) -> Any:
    """Return an operator that is on the list; None for all else."""
    found = _TARGET.fullmatch(target)
    if found is None:
        return None
    name, overload = found.groups()
    inplace = name.endswith("_") and name[:-1] in OPERATORS
    if name not in OPERATORS and not inplace:
        return None
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        return None
    function = getattr(packet, overload)
    if name != "detach_" and torch.Tag.inplace_view in function.tags:
        return None  # it would change what a weight is for all later rows
    made = {str(one.type) for one in function._schema.returns}
    scripted = not name.startswith("sym_") and not made <= {"Tensor", "List[Tensor]"}
    if scripted or overload.startswith("prim_"):
        return None  # TorchScript's of numbers, text and lists, whose length nothing bounds
    if overload == "data":
        return None  # packed sequences, whose kernels trust the lengths that they get
    written = [place for place, one in enumerate(function._schema.arguments) if is_written(one)]
    return function if written == ([0] if inplace else []) else None


def check_operands(call: Call, schema: Any, operands: Mapping[str, Operand]) -> None:
    """Check a call of an operator against its schema.

    Raises:
        CorruptData: An operand is missing or unknown, or a number stands for a type.
        InvalidInput: Only a network in training calls it so.
    """
    names = [one.name for one in schema.arguments]
    strange = [one for one in operands if one not in names]
    missing = [
        one.name
        for one in schema.arguments
        if one.name not in operands and not one.has_default_value()
    ]
    if strange or missing:
        said = f"has no {strange[0]!r:.40}" if strange else f"needs {missing[0]!r:.40}"
        raise CorruptData(f"the program calls {call.target}, which {said}")
    for one in schema.arguments:
        kind = _CONSTANTS.get(str(one.real_type).removeprefix("Optional[").removesuffix("]"))
        found = operands.get(one.name)
        if kind is not None and found is not None and not isinstance(found, kind):
            # torch takes any number for one, and looks up what it stands for without a check.
            raise CorruptData(f"{call.target} has a {one.name} that is none: {found!r:.40}")
    _check_still(call, operands)


def guard(target: str, function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return an operator that refuses what its kernel would trust, and leaves no memory unset.

    Args:
        target: What it is called.
        function: The operator.
        names: Of its arguments, in order.
    """
    for part, check in _CHECKS.items():
        if part in target:
            function = _checked(function, check, names)
    if "flash_attention" in target:
        function = _attention
    return _zeroed(function) if "empty" in target else function


def _check_still(call: Call, operands: Mapping[str, Operand]) -> None:
    """Refuse what only a network in training does.

    Raises:
        InvalidInput: It drops out at random, or learns from the rows.
    """
    training = any(operands.get(one) is True for one in _TRAINING)
    if "instance_norm" in call.target or call.target.endswith(".no_stats"):
        training = training and operands.get("running_mean") is not None
    if training or operands.get("dropout_p", 0.0) != 0.0:
        remedy = "was exported in training, where answers are random; call model.eval() first"
        raise refuse(call.target, remedy)


def _attention(query: Tensor, key: Tensor, value: Tensor, *how: Any, **named: Any) -> Any:
    """Compute what a kernel that checks nothing computes, through the operator that does check.

    Its second result is for gradients: NaN, so that nobody learns from it.
    """
    told = dict(zip(("dropout_p", "is_causal"), how, strict=False)) | named
    made = torch.ops.aten.scaled_dot_product_attention.default(query, key, value, **told)
    return made, query.new_full(query.shape[:-1], math.nan)


def _zeroed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return zeros in place of whatever this process had in that memory before."""

    def make(*positional: Any, **named: Any) -> Tensor:
        made = function(*positional, **named)
        made.new_empty(0).set_(made.untyped_storage()).zero_()  # gaps between its numbers, too
        return made

    return make


def _checked(
    function: Callable[..., Any], check: Callable[..., str], names: Sequence[str]
) -> Callable[..., Any]:
    """Return a function that refuses operands of which a check says what is wrong."""

    def call(*positional: Any, **named: Any) -> Any:
        told = dict(zip(names, positional, strict=False)) | named
        if said := check(**told):
            raise ValueError(said)
        return function(*positional, **named)

    return call


def _wrong_norm(input: Tensor, **others: Any) -> str:  # noqa: A002
    wanted = input.shape[1:2]
    for name, one in others.items():
        if isinstance(one, Tensor) and one.shape != wanted:
            return f"it gets {list(one.shape)} as {name} for {list(input.shape)}"
    return ""


def _wrong_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> str:
    if not v.numel() or v.dtype != g.dtype:
        return f"it gets {list(v.shape)} of {v.dtype} and {list(g.shape)} of {g.dtype}"
    sizes = [size if place == dim else 1 for place, size in enumerate(v.shape)]
    known = dim == -1 and g.numel() == 1 or dim in (0, v.dim() - 1) and list(g.shape) == sizes
    return "" if v.dim() and known else f"it gets {list(g.shape)} for {list(v.shape)}, axis {dim}"


def _wrong_bags(weight: Tensor, indices: Tensor, offsets: Tensor, **others: Any) -> str:
    if offsets.dim() != 1 or not offsets.numel():
        return f"it gets offsets {list(offsets.shape)}"
    if not offsets.is_meta:
        ordered = bool((offsets[1:] >= offsets[:-1]).all())
        if not ordered or int(offsets[0]) != 0 or int(offsets[-1]) > indices.numel():
            return "its offsets do not rise from 0 to the number of codes"
    return ""


def _wrong_axes(
    self: Tensor, dim: Sequence[int], last_dim_size: int | None = None, **others: Any
) -> str:
    wrong = [one for one in dim if not 0 <= one < self.dim()]
    if not dim or wrong or len(set(dim)) < len(dim):
        return f"it gets axes {dim} of {self.dim()}"
    half = self.shape[dim[-1]]
    if last_dim_size is not None and half != last_dim_size // 2 + 1:
        return f"it gets {half} for {last_dim_size} numbers"
    return ""


def _wrong_scales(**told: Any) -> str:
    if "scale_factors" in told:  # of which the sizes are computed
        return ""
    sizes = told["self"].shape[2:]
    axes = ("scales_d", "scales_h", "scales_w")[-len(sizes) :] if len(sizes) > 1 else ("scales",)
    for size, axis, whole in zip(told["output_size"], axes, sizes, strict=True):
        scale = told.get(axis)
        if scale is not None and not size - 1e-6 <= whole * scale < size + 1:
            return f"it gets a scale of {scale} for {whole} to {size}"
    return ""


def _wrong_modes(
    input: Tensor,  # noqa: A002
    grid: Tensor,
    interpolation_mode: int,
    padding_mode: int,
    **others: Any,
) -> str:
    known = (0, 1, 2) if input.dim() == 4 else (0, 1)
    right = interpolation_mode in known and padding_mode in (0, 1, 2)
    return "" if right else f"it gets modes {interpolation_mode} and {padding_mode}"


_CHECKS: dict[str, Callable[..., str]] = {
    "upsample": _wrong_scales,
    "batch_norm": _wrong_norm,
    "_weight_norm": _wrong_weight_norm,
    "embedding_bag": _wrong_bags,
    "._fft_": _wrong_axes,
    "grid_sampler": _wrong_modes,
}
"""What kernels of these operators trust. Made with and without values: the sizes of some operators'
results differ between the two, and those of values are known with values only."""
