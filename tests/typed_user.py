"""What a user's type checker must see of the installed package: mypy and pyright check this file, and nothing runs it.

Without ``py.typed`` every name would be ``Any``, and so both the asserted types and the expected error would be missed.
"""

from torch import Tensor, nn
from typing_extensions import assert_type

from crossmodal_attn import AGSCA, CMRA, AVInteraction, padding_mask, record_attention, relation_attention


class Fusion(nn.Module):
    """A user's module around layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.guide = AGSCA(video_dim=512, audio_dim=width)
        self.interaction = AVInteraction(width, num_heads=4, dropout=0.1)

    def forward(self, video: Tensor, audio: Tensor) -> Tensor:
        fused: Tensor = self.interaction(self.guide(video, audio), audio, padding_mask=padding_mask([10, 7]))
        return fused


def attributes(layer: CMRA) -> None:
    assert_type(layer.q_proj, nn.Linear)
    assert_type(layer.context_kv_proj, nn.Linear | None)
    assert_type(layer.include_query, bool)


def results(layer: CMRA, model: Fusion, query: Tensor, memory: Tensor) -> None:
    assert_type(layer.forward(query, [memory, memory], need_weights=True), Tensor | tuple[Tensor, Tensor])
    assert_type(relation_attention(query, memory, memory, dropout_p=0.1), Tensor)
    assert_type(padding_mask([3, 1]), Tensor)
    with record_attention(model) as maps:
        assert_type(maps, dict[str, Tensor])


def subclass_is_kept(attention: nn.MultiheadAttention) -> None:
    class Named(CMRA):
        """A user's layer."""

    assert_type(Named.from_multihead_attention(attention), Named)


def mistake_is_seen() -> None:
    CMRA("256", num_heads=4)  # type: ignore[arg-type]
