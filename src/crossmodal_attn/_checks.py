"""Check arguments. Every error message names the argument, what was expected, and what was given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crossmodal_attn._eager import autocasts

__all__ = [
    "check_contexts",
    "check_device",
    "check_divisible",
    "check_dtype",
    "check_features",
    "check_mask",
    "check_match",
    "check_probability",
    "check_projected",
    "check_size",
    "check_tensor",
    "check_widths",
    "has_shape",
    "list_contexts",
]


def check_size(name: str, value: int, minimum: int = 1) -> None:
    """Check that an option is an integer of at least ``minimum``."""
    # In non-strict torch.export, a size is a SymInt.
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_widths(name: str, value: int | Sequence[int]) -> int | tuple[int, ...]:
    """Check a width, or a non-empty list or tuple of widths. Return the width, or a tuple of widths."""
    if not isinstance(value, (list, tuple)):
        if not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an int, or a list or tuple of them, got {type(value).__name__}")
        check_size(name, value)
        return value
    if not value:
        raise ValueError(f"{name} must hold at least one width, got {value}")
    for index, width in enumerate(value):
        check_size(f"{name}[{index}]", width)
    return tuple(value)


def check_divisible(embed_dim: int, num_heads: int) -> None:
    """Check that ``num_heads`` divides ``embed_dim``."""
    check_size("embed_dim", embed_dim)
    check_size("num_heads", num_heads)
    if embed_dim % num_heads:
        raise ValueError(
            f"embed_dim must be divisible by num_heads, got embed_dim={embed_dim} and num_heads={num_heads}"
        )


def check_probability(name: str, value: float) -> None:
    """Check that a dropout probability lies in [0, 1]."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability between 0 and 1, got {value}")


def check_tensor(name: str, value: object) -> None:
    """Check that a value is a tensor, and not a list or an array."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_dtype(name: str, value: Tensor, owner: str, dtype: torch.dtype) -> None:
    """Check that a tensor has the expected floating-point dtype, unless autocast will convert it.

    Args:
        name: the argument's name.
        value: the argument.
        owner: the subject of the error message, with its verb: "query has".
        dtype: the expected dtype.
    """
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating-point dtype, got {value.dtype}")
    if value.dtype == dtype:
        return
    if not autocasts(value) or dtype == torch.float64:
        raise TypeError(
            f"{name} has dtype {value.dtype}, but {owner} {dtype}: "
            f"convert one of them (.to({dtype})) or, for half precision, run under torch.autocast"
        )


def check_features(
    name: str, value: Tensor, size: int, option: str, layer: nn.Module, dtype_of: nn.Module, *, sequence: bool = True
) -> None:
    """Check the shape and the dtype of the features that enter a layer.

    Args:
        name: the argument's name.
        value: the features.
        size: the expected size of the last dimension.
        option: the constructor option that fixed ``size``.
        layer: the layer that the error message names.
        dtype_of: the projection that the features enter; its weight has the expected dtype.
        sequence: True for features (batch, time, width), False for (*, width).
    """
    check_tensor(name, value)
    if sequence and value.dim() != 3:
        hint = " (add a batch dimension with unsqueeze(0))" if value.dim() == 2 else ""
        raise ValueError(f"{name} must have shape (batch, time, {size}), got {tuple(value.shape)}{hint}")
    layer_name = type(layer).__name__
    if value.dim() == 0 or value.shape[-1] != size:
        came = f"{value.shape[-1]} channels in its last dimension" if value.dim() else "no dimensions"
        raise ValueError(f"{name} has {came}, but this {layer_name} was built with {option}={size}")
    # A wrapped or quantized projection may have no floating-point weight.
    weight = getattr(dtype_of, "weight", None)
    expected = weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else value.dtype
    check_dtype(name, value, f"the weights of this {layer_name} have", expected)


def check_projected(name: str, projected: Tensor, size: int, layer: nn.Module) -> None:
    """Check that a projection returns all of its ``size`` channels, and not one process's part of them.

    A part would give wrong results without an error: the first half of the joint key and value projection is only keys.
    """
    if projected.shape[-1] != size:
        raise ValueError(
            f"{name} gave {projected.shape[-1]} channels, but this {type(layer).__name__} needs all {size} of them: "
            "if tensor parallelism splits this projection, gather its output with "
            "ColwiseParallel(output_layouts=Replicate())"
        )


def check_match(name: str, value: Tensor, dims: dict[int, str], other_name: str, other: Tensor) -> None:
    """Check that two arguments have the same sizes in ``dims`` and the same device."""
    for dim, meaning in dims.items():
        if value.shape[dim] != other.shape[dim]:
            raise ValueError(
                f"{name} must have the {meaning} of {other_name}, {other.shape[dim]}, got {value.shape[dim]} "
                f"(shapes {tuple(value.shape)} and {tuple(other.shape)})"
            )
    check_device(name, value, other_name, other)


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that two arguments are on the same device."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


def has_shape(value: Tensor, *shapes: Sequence[int]) -> bool:
    """Return whether a tensor has one of some shapes.

    Tuples are not compared. For shapes with different numbers of dimensions, torch.export would require that their
    first sizes differ in every later call, and torch.compile does not find a constant size among symbolic ones.
    """
    return any(
        value.dim() == len(shape) and all(size == wanted for size, wanted in zip(value.shape, shape, strict=True))
        for shape in shapes
    )


def check_mask(name: str, mask: Tensor, shape: Sequence[int], like: Tensor) -> None:
    """Check that a padding mask is bool, has ``shape``, and is on the device of the features ``like``."""
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        additive = "; or mask < 0 for an additive mask of 0 and -inf" if mask.is_floating_point() else ""
        raise TypeError(
            f"{name} must be bool (True = padding), got {mask.dtype}: use mask.bool() if 1 marks padding; "
            f"mask == 0 if 1 marks valid steps (Hugging Face's attention_mask){additive}"
        )
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(mask.shape)}")
    check_device(name, mask, "its features", like)


def list_contexts(
    context: object, single: tuple[type, ...] = (Tensor,), **masks: object
) -> tuple[list[str], list[Any], list[list[Any]]]:
    """Return the contexts and, for each mask argument, one mask (or None) per context. Times are listed like masks.

    Args:
        context: a tensor, a list or tuple of tensors or None, or None. The members of a list are not checked.
        single: the types of a context that is not in a list. A named tuple among them is one context.
        masks: the arguments with masks or times, by name. Each is None, or a mask if ``context`` is a tensor, or a list
            or tuple of masks if ``context`` is a list or tuple.

    Returns:
        tuple[list[str], list[Any], list[list[Any]]]: the index of each context as error messages write it, such as
        "[0]"; the contexts; and for each argument in ``masks`` its list of masks.
    """
    if context is None:
        for name, value in masks.items():
            if value is not None:
                raise ValueError(f"{name} must be None where no context is given, got {type(value).__name__}")
        return [], [], [[] for _ in masks]
    if isinstance(context, single):
        return [""], [context], [[value] for value in masks.values()]
    if not isinstance(context, (list, tuple)):
        raise TypeError(
            f"context must be a torch.Tensor, a list or tuple of them, or None, got {type(context).__name__}"
        )
    listed: list[list[Any]] = []
    for name, value in masks.items():
        entry = "times" if name.endswith("times") else "a mask"
        expected = f"a list with {entry} or None for each context, {len(context)} in all"
        if value is not None and not isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
        own = [None] * len(context) if value is None else list(value)
        if len(own) != len(context):
            raise ValueError(f"{name} must be {expected}, got {len(own)}")
        for index, features in enumerate(context):
            if features is None and own[index] is not None:
                raise ValueError(
                    f"{name}[{index}] must be None where context[{index}] is None, got {type(own[index]).__name__}"
                )
        listed.append(own)
    return [f"[{index}]" for index in range(len(context))], list(context), listed


def check_contexts(contexts: Sequence[object], context_dim: int | tuple[int, ...], layer: nn.Module) -> None:
    """Check that ``layer`` is given as many contexts, tensors or None, as it was built for."""
    count, expected = 1, f"1 entry, of the width context_dim={context_dim}"
    if isinstance(context_dim, tuple):
        count, entries = len(context_dim), "entry" if len(context_dim) == 1 else "entries"
        expected = f"{count} {entries}, one for each width in context_dim={list(context_dim)}"
    if len(contexts) != count:
        raise ValueError(
            f"context must have {expected} of this {type(layer).__name__}, got {len(contexts)}: "
            "use None for a missing modality"
        )
