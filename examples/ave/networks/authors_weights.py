"""Weights of the authors' released code, in the layers of this library.

Each parameter of ours is mapped to the one of theirs that it comes from. Layers that they build and never use
(templates of deep copies, two guidance layers, the decoder's self-attention) are ignored by name; anything else that
does not fit is an error, before anything is filled.
"""

import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ave.networks.cmran import CMRAN, Setting
from ave.reading import check_regular
from crossmodal_attn import AGSCA, AVInteraction, CrossModalRelation

__all__ = [
    "agsca_from_official",
    "interaction_from_official",
    "load_official_state_dict",
    "read_official",
    "relation_from_official",
]

Layer = TypeVar("Layer", bound=nn.Module)
Sources = dict[str, tuple[str, Callable[[Tensor], Tensor]]]
"""From the name of our parameter to the name of theirs, and a function that takes our part of it."""


def read_official(path: Path, categories: Sequence[str] | None = None) -> CMRAN:
    """Read a checkpoint that the authors' code saved, ``.pth.tar``, into a CMRAN in float32.

    The category head decides the setting: 28 rows are supervised, 29, with background, are weak. Other numbers of rows
    leave it open, and are refused. The widths follow from the shapes.

    Args:
        path: holds a state dict, or one as "state_dict" among other things.
        categories: the 28 names, in the order of the labels.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no checkpoint, holds anything but tensors, numbers and text, or does not fit.
    """
    content = _load_tensors(path)
    state_dict = content.get("state_dict", content) if isinstance(content, Mapping) else content
    try:
        _check_state_dict(state_dict)
        _check_stored(state_dict)
        state_dict = _without_prefix(state_dict)
        sizes = {}
        for name in (_CATEGORY_HEAD, _VIDEO_PROJECTION, _AUDIO_PROJECTION):
            if name not in state_dict or state_dict[name].dim() != 2:
                raise ValueError(f"no matrix {name}")
            sizes[name] = state_dict[name].shape
        rows = sizes[_CATEGORY_HEAD][0]
        if rows not in _SETTINGS:
            raise ValueError(f"{_CATEGORY_HEAD} with {rows} rows, neither 28 (supervised) nor 29 (weak)")
        video_dim, audio_dim = sizes[_VIDEO_PROJECTION][1], sizes[_AUDIO_PROJECTION][1]
        build = partial(CMRAN, _SETTINGS[rows], video_dim=video_dim, audio_dim=audio_dim, categories=categories)
        with torch.device("meta"):  # takes no memory until all shapes are known to fit
            load_official_state_dict(build(), state_dict)
        model = build()
        return load_official_state_dict(model, state_dict).eval()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a checkpoint of the authors' CMRAN, got: {error}") from error


def _load_tensors(path: Path) -> Any:
    """Load a file without running any code in it."""
    if path.exists():
        check_regular(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_unpacked(path, sum(member.file_size for member in archive.infolist()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that the errors below speak of
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"{path} can't be read: {error.strerror}") from error
    except MemoryError:
        raise
    except Exception as error:  # on damaged files its unpickler raises whatever it runs into
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} must hold tensors only, got {refused[1]}, refused because loading it could run code: save the "
                f"network's state_dict() alone"
            ) from error
        raise ValueError(f"{path} must be a complete checkpoint saved by torch.save, got something else") from error


def _check_unpacked(path: Path, unpacked: int) -> None:
    """Refuse an archive that unpacks to more than its size, as torch never packs."""
    if unpacked > (size := path.stat().st_size):
        raise ValueError(f"{unpacked} bytes in an archive of {size}")


def _check_stored(state_dict: Mapping[str, Tensor]) -> None:
    """Check that every tensor is in the file in full: a few bytes can stand for a tensor of any size."""
    for name, value in state_dict.items():
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        if not plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise ValueError(f"{name} of shape {tuple(value.shape)}, which is not stored in full")


def load_official_state_dict(model: CMRAN, state_dict: Mapping[str, Tensor]) -> CMRAN:
    """Fill a CMRAN from the authors' ``supv_main_model`` or ``weak_main_model``.

    Args:
        model: the network to fill, of the setting that the weights are of.
        state_dict: theirs, with or without the ``module.`` prefix of ``DataParallel``.

    Returns:
        CMRAN: the same ``model``, filled.

    Raises:
        TypeError: if ``model`` is no CMRAN, or ``state_dict`` does not map names to tensors.
        ValueError: if names are missing, unexpected or misshapen; the message lists them, and nothing is filled.
    """
    if not isinstance(model, CMRAN):
        raise TypeError(f"model must be a CMRAN, got {type(model).__name__}")
    _check_state_dict(state_dict)
    state_dict = _without_prefix(state_dict)
    sources = {
        **_copied("video_proj", "v_fc"),
        **_prefixed("spatial_channel_attention", "spatial_channel_att", _agsca()),
        **_prefixed("interaction", "AVInter", _interaction()),
        **_copied("event_head", "localize_module.classifier"),
        **_copied("category_head", "localize_module.event_classifier"),
    }
    unused = [f"spatial_channel_att.{name}" for name in _UNUSED_AGSCA]
    for query, context in (("video", "audio"), ("audio", "video")):
        relation = f"{query}_relation"
        sources |= _copied(f"{relation}.query_proj", f"{query}_decoder.affine_matrix")
        sources |= _copied(f"{relation}.context_proj", f"{context}_encoder.affine_matrix")
        for index in range(len(getattr(model, relation).internal_relation.layers)):
            ours, theirs = f"{relation}.internal_relation.layers.{index}", f"{context}_encoder.encoder.layers.{index}"
            sources |= _prefixed(ours, theirs, _block("self_attn"))
        sources |= _prefixed(
            f"{relation}.cross_relation", f"{query}_decoder.decoder.layers.0", _block("multihead_attn")
        )
        unused += [f"{query}_encoder.encoder_layer.", f"{query}_decoder.decoder_layer."]
        unused += [f"{query}_decoder.decoder.layers.0.{name}" for name in _UNUSED_DECODER]
    return _fill(model, state_dict, sources, unused)


def agsca_from_official(state_dict: Mapping[str, Tensor], layer: AGSCA) -> AGSCA:
    """Fill an AGSCA from the authors' ``spatial_channel_att``; errors as :func:`load_official_state_dict`."""
    return _fill(layer, state_dict, _agsca(), _UNUSED_AGSCA)


def relation_from_official(state_dict: Mapping[str, Tensor], layer: CrossModalRelation) -> CrossModalRelation:
    """Fill a block from their ``EncoderLayer``, or from their ``DecoderLayer``, which attends with ``multihead_attn``.

    Errors as :func:`load_official_state_dict`.
    """
    _check_state_dict(state_dict)
    decoder = any(name.startswith("multihead_attn.") for name in state_dict)
    attention, unused = ("multihead_attn", _UNUSED_DECODER) if decoder else ("self_attn", ())
    return _fill(layer, state_dict, _block(attention), unused)


def interaction_from_official(state_dict: Mapping[str, Tensor], layer: AVInteraction) -> AVInteraction:
    """Fill an AVInteraction from the authors' ``AVInter``; errors as :func:`load_official_state_dict`."""
    return _fill(layer, state_dict, _interaction(), ())


_CATEGORY_HEAD = "localize_module.event_classifier.weight"
_VIDEO_PROJECTION = "v_fc.weight"
_AUDIO_PROJECTION = "audio_encoder.affine_matrix.weight"
_SETTINGS: dict[int, Setting] = {28: "supervised", 29: "weak"}
_UNUSED_AGSCA = ("affine_video_guided_1.", "affine_video_guided_2.")
_UNUSED_DECODER = ("self_attn.",)


def _copied(ours: str, theirs: str) -> Sources:
    """Map the weight and bias of a module to theirs, unchanged."""
    return {f"{ours}.{name}": (f"{theirs}.{name}", lambda value: value) for name in ("weight", "bias")}


def _prefixed(ours: str, theirs: str, sources: Sources) -> Sources:
    return {f"{ours}.{name}": (f"{theirs}.{source}", take) for name, (source, take) in sources.items()}


def _agsca() -> Sources:
    return {
        **_copied("channel_video_proj", "affine_video_1"),
        **_copied("channel_audio_proj", "affine_audio_1"),
        **_copied("squeeze", "affine_bottleneck"),
        **_copied("excite", "affine_v_c_att"),
        **_copied("spatial_video_proj", "affine_video_2"),
        **_copied("spatial_audio_proj", "affine_audio_2"),
        "spatial_weight": ("affine_v_s_att.weight", lambda value: value.squeeze(0)),
        "spatial_bias": ("affine_v_s_att.bias", lambda value: value),
    }


def _attention(theirs: str) -> Sources:
    """Map an attention: their packed projection is [q; k; v], ours are q and [k; v]."""
    sources = _copied("attention.out_proj", f"{theirs}.out_proj")
    for name in ("weight", "bias"):
        packed = f"{theirs}.in_proj_{name}"
        sources[f"attention.q_proj.{name}"] = (packed, lambda value: value[: value.shape[0] // 3])
        sources[f"attention.kv_proj.{name}"] = (packed, lambda value: value[value.shape[0] // 3 :])
    return sources


def _block(attention: str) -> Sources:
    same = [_copied(name, name) for name in ("norm1", "linear1", "linear2", "norm2")]
    return {name: source for part in (_attention(attention), *same) for name, source in part.items()}


def _interaction() -> Sources:
    return {**_attention("video_multihead"), **_copied("norm", "norm1")}


def _without_prefix(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Remove the prefix ``module.`` that ``DataParallel`` adds to all names."""
    if all(name.startswith("module.") for name in state_dict):
        return {name.removeprefix("module."): value for name, value in state_dict.items()}
    return state_dict


def _check_state_dict(state_dict: Mapping[str, Tensor]) -> None:
    """Check that it maps names to tensors; the likeliest mistake is a checkpoint that holds more than a state dict."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(state_dict).__name__}")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(f"state_dict must map names to tensors, got {type(value).__name__} at {name!r}")


def _fill(layer: Layer, state_dict: Mapping[str, Tensor], sources: Sources, unused: Iterable[str]) -> Layer:
    """Check all names and shapes, then copy."""
    _check_state_dict(state_dict)
    expected = {name: parameter.shape for name, parameter in layer.state_dict().items()}
    if set(expected) != set(sources):
        raise TypeError(f"layer must be the one of ours that state_dict is for, got {type(layer).__name__}")
    used = {theirs for theirs, _ in sources.values()}
    unexpected = [name for name in state_dict if name not in used and not name.startswith(tuple(unused))]
    found = {ours: (state_dict[theirs], take) for ours, (theirs, take) in sources.items() if theirs in state_dict}
    taken = {ours: take(value) if value.dim() else value for ours, (value, take) in found.items()}
    misshapen = [
        f"{sources[ours][0]} (gives {ours} the shape {tuple(value.shape)}, expected {tuple(expected[ours])})"
        for ours, value in taken.items()
        if value.shape != expected[ours]
    ]
    faults = {"missing": sorted(used - set(state_dict)), "unexpected": unexpected, "misshapen": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items() if names)
        raise ValueError(f"state_dict does not fit this {type(layer).__name__}. {listed}")
    if not any(parameter.is_meta for parameter in layer.parameters()):  # there is nothing to fill on meta
        layer.load_state_dict(taken)
    return layer
