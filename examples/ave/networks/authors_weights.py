"""Weights of the authors' released code, in the layers of this library.

THEIRS leads from our names of parameters to theirs. What they build and never use (templates of deep copies, two
guidance layers, the decoder's self-attention) is ignored by name; anything else that does not fit is an error, before
anything is filled.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ave import Setting
from ave.networks.cmran import CMRAN
from ave.reading import check_regular
from crossmodal_attn import AGSCA, AVInteraction, CrossModalRelation

__all__ = ["load_official_state_dict", "read_official"]

Layer = TypeVar("Layer", bound=nn.Module)

THEIRS = {
    r"^video_proj": "v_fc",
    r"^spatial_channel_attention": "spatial_channel_att",
    "channel_video_proj": "affine_video_1",
    "channel_audio_proj": "affine_audio_1",
    "squeeze": "affine_bottleneck",
    "excite": "affine_v_c_att",
    "spatial_video_proj": "affine_video_2",
    "spatial_audio_proj": "affine_audio_2",
    r"spatial_(weight|bias)": r"affine_v_s_att.\1",
    r"^(video|audio)_relation\.query_proj": r"\1_decoder.affine_matrix",
    r"^(video|audio)_relation\.cross_relation": r"\1_decoder.decoder.layers.0",
    r"^video_relation\.context_proj": "audio_encoder.affine_matrix",
    r"^audio_relation\.context_proj": "video_encoder.affine_matrix",
    r"^video_relation\.internal_relation": "audio_encoder.encoder",
    r"^audio_relation\.internal_relation": "video_encoder.encoder",
    r"(decoder\.layers\.\d+)\.attention": r"\1.multihead_attn",
    r"(encoder\.layers\.\d+)\.attention": r"\1.self_attn",
    r"^interaction\.attention": "AVInter.video_multihead",
    r"^interaction\.norm": "AVInter.norm1",
    r"(q|kv)_proj\.": "in_proj_",
    "^event_head": "localize_module.classifier",
    "^category_head": "localize_module.event_classifier",
}
"""What to replace, in this order, in the name of a parameter of CMRAN to get the name in the authors' code."""
PLACES: dict[type[nn.Module], tuple[str, str]] = {
    CMRAN: ("", ""),
    AGSCA: ("spatial_channel_attention.", "spatial_channel_att."),
    AVInteraction: ("interaction.", "AVInter."),
    CrossModalRelation: ("video_relation.internal_relation.layers.0.", "audio_encoder.encoder.layers.0."),
}
"""Where in the network each kind of layer is, in our names and in theirs."""
DECODER_PLACE = "video_relation.cross_relation.", "video_decoder.decoder.layers.0."
UNUSED = re.compile(
    r"spatial_channel_att\.affine_video_guided_[12]\.|(video|audio)_encoder\.encoder_layer\."
    r"|(video|audio)_decoder\.(decoder_layer\.|decoder\.layers\.0\.self_attn\.)"
)
CATEGORY_HEAD, VIDEO_PROJECTION = "localize_module.event_classifier.weight", "v_fc.weight"
AUDIO_PROJECTION = "audio_encoder.affine_matrix.weight"
SETTINGS: dict[int, Setting] = {28: "supervised", 29: "weak"}
"""By the rows of the category head."""


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
    try:
        state_dict = _check(content.get("state_dict", content) if isinstance(content, Mapping) else content)
        for name, value in state_dict.items():  # a few bytes can stand for a tensor of any size
            plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            if not plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
                raise ValueError(f"{name} of shape {tuple(value.shape)}, which is not stored in full")
        for name in (CATEGORY_HEAD, VIDEO_PROJECTION, AUDIO_PROJECTION):
            if name not in state_dict or state_dict[name].dim() != 2:
                raise ValueError(f"no matrix {name}")
        if (rows := len(state_dict[CATEGORY_HEAD])) not in SETTINGS:
            raise ValueError(f"{CATEGORY_HEAD} with {rows} rows, neither 28 (supervised) nor 29 (weak)")
        with torch.device("meta"):  # takes no memory until all shapes are known to fit
            model = CMRAN(
                SETTINGS[rows],
                video_dim=state_dict[VIDEO_PROJECTION].shape[1],
                audio_dim=state_dict[AUDIO_PROJECTION].shape[1],
                categories=categories,
            )
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
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > path.stat().st_size:  # torch never packs
                raise zipfile.BadZipFile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that the errors below speak of
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise OSError(f"{path} can't be read: {error.strerror}") from error
    except MemoryError:
        raise
    except Exception as error:  # on damaged files its unpickler raises whatever it runs into
        came = "something else"
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            came = f"{refused[1]}, refused because loading it could run code: save the network's state_dict() alone"
        raise ValueError(f"{path} must be a complete checkpoint of tensors only, by torch.save, got {came}") from error


def load_official_state_dict(layer: Layer, state_dict: Mapping[str, Tensor]) -> Layer:
    """Fill a network or a layer from the authors' weights.

    Args:
        layer: what to fill: a :class:`CMRAN`, of the setting that the weights are of, from their ``supv_main_model`` or
            ``weak_main_model``; an AGSCA from their ``spatial_channel_att``; a CrossModalRelation from their
            ``EncoderLayer`` or ``DecoderLayer``; an AVInteraction from their ``AVInter``.
        state_dict: theirs, with or without the ``module.`` prefix of ``DataParallel``.

    Returns:
        nn.Module: the same ``layer``, filled; on the CPU if it was on the meta device.

    Raises:
        TypeError: if ``layer`` is another one, or ``state_dict`` does not map names to tensors.
        ValueError: if names are missing, unexpected or misshapen; the message lists them, and nothing is filled.
    """
    state_dict = _check(state_dict)
    kind = next((kind for kind in PLACES if isinstance(layer, kind)), None)
    if kind is None:
        expected = "a CMRAN, AGSCA, AVInteraction or CrossModalRelation"
        raise TypeError(f"layer must be {expected}, got {type(layer).__name__}")
    place, source = PLACES[kind]
    if kind is CrossModalRelation and any(name.startswith("multihead_attn.") for name in state_dict):
        place, source = DECODER_PLACE
    ours, theirs = layer.state_dict(), {}
    for name in ours:
        theirs[name] = place + name
        for pattern, replacement in THEIRS.items():
            theirs[name] = re.sub(pattern, replacement, theirs[name])
        theirs[name] = theirs[name].removeprefix(source)
    used = set(theirs.values())
    parts = {name: _take(name, state_dict[given]) for name, given in theirs.items() if given in state_dict}
    faults = {
        "missing": sorted(used - state_dict.keys()),
        "unexpected": [name for name in state_dict if not (name in used or UNUSED.match(source + name))],
        "misshapen": [
            f"{theirs[name]} (gives {name} the shape {tuple(part.shape)}, expected {tuple(ours[name].shape)})"
            for name, part in parts.items()
            if part.shape != ours[name].shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{fault}: {', '.join(found)}" for fault, found in faults.items() if found)
        raise ValueError(f"state_dict does not fit this {type(layer).__name__}. {listed}")
    copies = {name: part.to(ours[name].dtype, copy=True) for name, part in parts.items()}
    layer.load_state_dict(copies, assign=any(value.is_meta for value in ours.values()))
    return layer


def _check(state_dict: object) -> dict[str, Tensor]:
    """Check that names are mapped to tensors, and drop ``DataParallel``'s prefix, which all names have or none.

    The likeliest mistake is a checkpoint that holds more than a state dict.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must map names to tensors, got {type(state_dict).__name__}")
    for name, value in state_dict.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(f"state_dict must map names to tensors, got {type(value).__name__} at {name!r}")
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    return {name.removeprefix(prefix): value for name, value in state_dict.items()}


def _take(name: str, value: Tensor) -> Tensor:
    """Take our part of their parameter: their packed projection is [q; k; v], ours are q and [k; v]."""
    if value.dim() == 0:  # which fits nothing
        return value
    if "q_proj." in name or "kv_proj." in name:
        third = len(value) // 3
        return value[:third] if "q_proj." in name else value[third:]
    return value.squeeze(0) if name.endswith("spatial_weight") else value
