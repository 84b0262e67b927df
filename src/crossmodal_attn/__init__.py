"""Cross-modal attention layers for PyTorch: CMRA, AGSCA and audio-video interaction (CMRAN, ACM MM 2020)."""

from crossmodal_attn.agsca import AGSCA, channel_attention, spatial_attention
from crossmodal_attn.av_interaction import AVInteraction
from crossmodal_attn.cmra import CMRA, relation_attention, relation_weights
from crossmodal_attn.drop_in import replace_multihead_attention
from crossmodal_attn.masks import padding_mask, zero_padding
from crossmodal_attn.memory import Memory
from crossmodal_attn.recording import record_attention, summarize_relations
from crossmodal_attn.relation_aware import CrossModalRelation, InternalTemporalRelation, RelationAware
from crossmodal_attn.rotary import RotaryTime, rotate_by_time
from crossmodal_attn.windows import relation_mask, relation_window

__all__ = [
    "AGSCA",
    "CMRA",
    "AVInteraction",
    "CrossModalRelation",
    "InternalTemporalRelation",
    "Memory",
    "RelationAware",
    "RotaryTime",
    "__version__",
    "channel_attention",
    "padding_mask",
    "record_attention",
    "relation_attention",
    "relation_mask",
    "relation_weights",
    "relation_window",
    "replace_multihead_attention",
    "rotate_by_time",
    "spatial_attention",
    "summarize_relations",
    "zero_padding",
]

__version__ = "0.1.0.dev0"
