"""What a type checker must see of the installed package: mypy and pyright check this file, and nothing runs it.

Without ``py.typed``, both would report that the package has no types. Each comment that ignores an error must suppress
a real error.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from torch import Tensor, nn
from typing_extensions import assert_type

from crossmodal_attn import (
    AGSCA,
    CMRA,
    AVInteraction,
    CrossModalRelation,
    Memory,
    RelationAware,
    RotaryTime,
    padding_mask,
    record_attention,
    relation_attention,
    relation_mask,
    relation_window,
    replace_multihead_attention,
    rotate_by_time,
    summarize_relations,
)


class Fusion(nn.Module):
    """A user's module around layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.guide = AGSCA(video_dim=512, audio_dim=width)
        self.interaction = AVInteraction(width, num_heads=4, dropout=0.1)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        fused: Tensor = self.interaction(self.guide(video, audio), audio, padding_mask=padding_mask([10, 7]))
        return fused


def attributes(layer: CMRA, block: RelationAware) -> None:
    assert_type(layer.q_proj, nn.Linear)
    assert_type(layer.context_kv_proj, nn.Linear | None)
    assert_type(layer.context_dim, int | tuple[int, ...])
    assert_type(layer.include_query, bool)
    assert_type(layer.rotary, RotaryTime | None)
    assert_type(block.context_proj, nn.Linear)
    assert_type(block.cross_relation.attention, CMRA)


def results(layer: CMRA, guide: AGSCA, model: Fusion, query: Tensor, memory: Tensor) -> None:
    assert_type(layer.forward(query, [memory, memory], need_weights=True), Tensor | tuple[Tensor, Tensor])
    layer.forward(query, [memory, None], context_padding_mask=[padding_mask([3, 1]), None])
    layer.forward(query, [memory, None], query_times=query[0, :, 0], context_times=[memory[:, :, 0], None])
    assert_type(rotate_by_time(query, memory, min_period=1, max_period=RotaryTime().max_period), Tensor)
    past = layer.remember(memory, own=True)
    assert_type(past.append(layer.remember(query), max_length=100), Memory)
    assert_type(layer.remember([memory, None]), list[Memory | None])
    layer.forward(query, [memory, None, past])
    assert_type(guide.forward(memory, query), Tensor | tuple[Tensor, Tensor, Tensor])
    assert_type(relation_attention(query, memory, memory, dropout_p=0.1), Tensor)
    assert_type(padding_mask([3, 1]), Tensor)
    assert_type(relation_mask(10, [40], causal=True, window=(2, None)), Tensor)
    window = relation_window(10, [40], context_times=[memory], context_offsets=[0.5])
    layer.forward(query, memory, attn_mask=window)
    assert_type(window.mask(device="cpu"), Tensor)
    assert_type(summarize_relations(memory, [10, 10]).intra, Tensor)
    assert_type(replace_multihead_attention(model).skipped, dict[str, str])
    with record_attention(model) as maps:
        assert_type(maps, dict[str, Tensor])
    with record_attention(model, every_call=True) as lists:
        assert_type(lists, dict[str, list[Tensor]])


def subclass_is_kept(attention: nn.MultiheadAttention) -> None:
    class Named(CMRA):
        """A user's layer."""

    assert_type(Named.from_multihead_attention(attention), Named)


def options() -> None:
    CMRA(256, num_heads=4, context_dim=[128, 300], include_query=False)
    RelationAware(512, (128, 300), own_projections=True)
    CrossModalRelation(256, 4, context_dim=128, norm_first=True, activation="gelu")
    CrossModalRelation(256, 4, activation=nn.SiLU())


def mistake_is_seen() -> None:
    CMRA("256", num_heads=4)  # type: ignore[arg-type]
