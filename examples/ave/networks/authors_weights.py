"""Load weights of the authors' released code into CMRAN and the layers of this library.

THEIRS translates our parameter names into the authors'. Their code has parameters that it never uses (templates of deep
copies, two guidance layers, the decoder's self-attention). These are ignored by name. Any other difference is an error,
and then no weight is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ave import Setting
from ave.networks.cmran import CMRAN
from ave.tensor_files import check_state_dict, check_stored, load_tensors
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
"""Regular expressions and replacements, in this order, from parameter names of CMRAN to those of the authors' code."""
PLACES: dict[type[nn.Module], tuple[str, str]] = {
    CMRAN: ("", ""),
    AGSCA: ("spatial_channel_attention.", "spatial_channel_att."),
    AVInteraction: ("interaction.", "AVInter."),
    CrossModalRelation: ("video_relation.internal_relation.layers.0.", "audio_encoder.encoder.layers.0."),
}
"""The place of each layer in the network: the prefix of its names in CMRAN, and in the authors' code."""
DECODER_PLACE = "video_relation.cross_relation.", "video_decoder.decoder.layers.0."
UNUSED = re.compile(
    r"spatial_channel_att\.affine_video_guided_[12]\.|(video|audio)_encoder\.encoder_layer\."
    r"|(video|audio)_decoder\.(decoder_layer\.|decoder\.layers\.0\.self_attn\.)"
)
CATEGORY_HEAD, VIDEO_PROJECTION = "localize_module.event_classifier.weight", "v_fc.weight"
AUDIO_PROJECTION = "audio_encoder.affine_matrix.weight"
SETTINGS: dict[int, Setting] = {28: "supervised", 29: "weak"}
"""The setting by the number of rows of the category head."""


def read_official(path: Path, categories: Sequence[str] | None = None) -> CMRAN:
    """Read a checkpoint of the authors' code, ``.pth.tar``, into a CMRAN in float32.

    The category head tells the setting: it has 28 rows if supervised, or 29 rows, with background, if weak. Any other
    number of rows is an error. The widths follow from the shapes.

    Args:
        path: a file with a state dict, or with a dict that has it under the key "state_dict".
        categories: the 28 names of the categories, in the order of the labels.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is not a checkpoint, holds objects other than tensors, numbers and text, or does not fit
            CMRAN.
    """
    content = load_tensors(path)
    try:
        state_dict = check_state_dict(content.get("state_dict", content) if isinstance(content, Mapping) else content)
        check_stored(state_dict)
        for name in (CATEGORY_HEAD, VIDEO_PROJECTION, AUDIO_PROJECTION):
            if name not in state_dict or state_dict[name].dim() != 2:
                raise ValueError(f"no matrix {name}")
        if (rows := len(state_dict[CATEGORY_HEAD])) not in SETTINGS:
            raise ValueError(f"{CATEGORY_HEAD} with {rows} rows, neither 28 (supervised) nor 29 (weak)")
        with torch.device("meta"):  # no memory is used before all shapes are checked
            model = CMRAN(
                SETTINGS[rows],
                video_dim=state_dict[VIDEO_PROJECTION].shape[1],
                audio_dim=state_dict[AUDIO_PROJECTION].shape[1],
                categories=categories,
            )
        return load_official_state_dict(model, state_dict).eval()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a checkpoint of the authors' CMRAN, got: {error}") from error


def load_official_state_dict(layer: Layer, state_dict: Mapping[str, Tensor]) -> Layer:
    """Fill a network or a layer from the authors' weights.

    Args:
        layer: the module to fill: a :class:`CMRAN` from their ``supv_main_model`` or ``weak_main_model``, in the same
            setting; an AGSCA from their ``spatial_channel_att``; a CrossModalRelation from their ``EncoderLayer`` or
            ``DecoderLayer``; an AVInteraction from their ``AVInter``.
        state_dict: the state dict of their module, with or without the ``module.`` prefix of ``DataParallel``.

    Returns:
        nn.Module: the same ``layer``. If it was on the meta device, it is now on the CPU.

    Raises:
        TypeError: if ``layer`` has another type, or ``state_dict`` does not map names to tensors.
        ValueError: if parameters are missing, unexpected or of another shape. The message lists them, and no weight is
            changed.
    """
    state_dict = check_state_dict(state_dict)
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


def _take(name: str, value: Tensor) -> Tensor:
    """Return our part of an authors' parameter. They pack a projection as [q; k; v], we have q and [k; v]."""
    if value.dim() == 0:  # fits no parameter
        return value
    if "q_proj." in name or "kv_proj." in name:
        third = len(value) // 3
        return value[:third] if "q_proj." in name else value[third:]
    return value.squeeze(0) if name.endswith("spatial_weight") else value
