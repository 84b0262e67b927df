"""Reference implementations: the paper's equations in slow, literal loops, and a table of all layers under test."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ave.networks.cmran import CMRAN
from crossmodal_attn import AGSCA, CMRA, AVInteraction, CrossModalRelation, InternalTemporalRelation, RelationAware

Paddings = Sequence[Tensor | None]


@torch.no_grad()
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Compute Eq. 5 for each video, head and query: outputs (B, H, T, D) and weights (B, H, T, M).

    ``mask`` broadcasts to (B, H, T, M): bool, True = may not attend, or floating point, added.
    """
    batch, heads, length, width = query.shape
    memory = key.shape[2]
    output, weights = torch.zeros_like(query), query.new_zeros(batch, heads, length, memory)
    if mask is not None:
        mask = mask.broadcast_to(weights.shape)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                scores = [float(query[b, h, t] @ key[b, h, m]) / math.sqrt(width) for m in range(memory)]
                if mask is not None and mask.dtype == torch.bool:
                    scores = [-math.inf if mask[b, h, t, m] else scores[m] for m in range(memory)]
                elif mask is not None:
                    scores = [scores[m] + float(mask[b, h, t, m]) for m in range(memory)]
                largest = max(scores, default=-math.inf)
                if largest == -math.inf:
                    continue
                powers = [math.exp(score - largest) for score in scores]
                for m in range(memory):
                    weights[b, h, t, m] = powers[m] / sum(powers)
                    output[b, h, t] += weights[b, h, t, m] * value[b, h, m]
    return output, weights


def cmra(
    layer: CMRA, query: Tensor, contexts: Sequence[Tensor | None] = (), mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute Eq. 6 with the weights of ``layer``, memory by memory and head by head."""
    memory = []
    for index, context in enumerate(contexts):
        own = layer.context_kv_projs[index] if layer.context_kv_projs else layer.context_kv_proj or layer.kv_proj
        if context is not None:
            memory.append((context, own))
    if layer.include_query:
        memory.append((query, layer.kv_proj))
    width = layer.embed_dim // layer.num_heads
    heads, maps = [], []
    for h in range(layer.num_heads):
        rows = slice(h * width, (h + 1) * width)
        queries = affine(layer.q_proj, query)[..., rows]
        keys = torch.cat([affine(proj, features)[..., : layer.embed_dim][..., rows] for features, proj in memory], 1)
        values = torch.cat([affine(proj, features)[..., layer.embed_dim :][..., rows] for features, proj in memory], 1)
        head_mask = mask if mask is None or mask.dim() < 4 or mask.shape[1] == 1 else mask[:, h : h + 1]
        head, weights = attention(queries[:, None], keys[:, None], values[:, None], head_mask)
        heads.append(head[:, 0])
        maps.append(weights[:, 0])
    return affine(layer.out_proj, torch.cat(heads, -1)), torch.stack(maps, 1)


def cross_modal_relation(
    layer: CrossModalRelation,
    query: Tensor,
    contexts: Sequence[Tensor | None] = (),
    mask: Tensor | None = None,
    *,
    norm_first: bool = False,
    activate: Callable[[Tensor], Tensor] = lambda features: features.clamp(min=0),
) -> Tensor:
    """Compute Eq. 7-8 with the weights of ``layer``; with ``norm_first`` each half is x + f(LayerNorm(x))."""
    if norm_first:
        hidden = query + cmra(layer.attention, layer_norm(layer.norm1, query), contexts, mask)[0]
        widened = affine(layer.linear1, layer_norm(layer.norm2, hidden))
        return hidden + affine(layer.linear2, activate(widened))
    hidden = layer_norm(layer.norm1, cmra(layer.attention, query, contexts, mask)[0] + query)
    feedforward = affine(layer.linear2, activate(affine(layer.linear1, hidden)))
    return layer_norm(layer.norm2, feedforward + hidden)


def av_interaction(layer: AVInteraction, video: Tensor, audio: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute Eq. 9 with the weights of ``layer``."""
    fused = audio * video
    return layer_norm(layer.norm, fused + cmra(layer.attention, fused, [audio, video], mask)[0])


def agsca(layer: AGSCA, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute Eq. 1-3 with the weights of ``layer``, segment by segment, with every product of maps built.

    ``video`` is (B, N, C) and ``audio`` (B, A). The results are the output (B, C) and the maps (B, C) and (B, N).
    """
    outputs, channel_maps, spatial_maps = [], [], []
    for v, a in zip(video, audio, strict=True):
        places = range(len(v))
        products = [
            affine(layer.channel_audio_proj, a).clamp(min=0) * affine(layer.channel_video_proj, v[n]).clamp(min=0)
            for n in places
        ]
        squeezed = affine(layer.squeeze, sum(products) / len(v)).clamp(min=0)
        channel_map = 1 / (1 + torch.exp(-affine(layer.excite, squeezed)))
        gated = [(channel_map + 1) * v[n] for n in places]
        products = [
            affine(layer.spatial_audio_proj, a).clamp(min=0) * affine(layer.spatial_video_proj, gated[n]).clamp(min=0)
            for n in places
        ]
        powers = [torch.exp(torch.tanh(product @ layer.spatial_weight + layer.spatial_bias)) for product in products]
        spatial_map = torch.stack([power / sum(powers) for power in powers])
        outputs.append(sum(spatial_map[n] * gated[n] for n in places))
        channel_maps.append(channel_map)
        spatial_maps.append(spatial_map)
    return torch.stack(outputs), torch.stack(channel_maps), torch.stack(spatial_maps)


def relation_aware(
    layer: RelationAware,
    query: Tensor,
    contexts: Tensor | Sequence[Tensor | None],
    mask: Tensor | None = None,
    context_masks: Paddings | None = None,
) -> Tensor:
    """Compute Eq. 4 with the weights of ``layer``: each context has its own M_self and mask."""
    projections = layer.context_projs or [layer.context_proj]
    internals = layer.internal_relations or [layer.internal_relation]
    related: list[Tensor | None] = []
    for index, features in enumerate([contexts] if isinstance(contexts, Tensor) else contexts):
        if features is not None:
            features = affine(projections[index], features)
            for block in internals[index].layers:
                features = cross_modal_relation(block, features, mask=context_masks and context_masks[index])
        related.append(features)
    return cross_modal_relation(layer.cross_relation, affine(layer.query_proj, query), related, mask)


def cmran(model: CMRAN, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Eq. 1-10 with the weights of ``model``: event logits (B, T) and category logits (B, K)."""
    batch, time = audio.shape[:2]
    projected = affine(model.video_proj, video).clamp(min=0).flatten(0, 1).flatten(1, 2)
    seen = agsca(model.spatial_channel_attention, projected, audio.flatten(0, 1))[0].unflatten(0, (batch, time))
    related_video = relation_aware(model.video_relation, seen, audio)
    related_audio = relation_aware(model.audio_relation, audio, seen)
    fused = av_interaction(model.interaction, related_video, related_audio)
    return affine(model.event_head, fused).squeeze(-1), affine(model.category_head, fused.max(1).values)


def affine(linear: nn.Linear, features: Tensor) -> Tensor:
    """Multiply by the weight and add the bias, if there is one."""
    projected = torch.einsum("...i,oi->...o", features, linear.weight)
    return projected if linear.bias is None else projected + linear.bias


def layer_norm(norm: nn.LayerNorm, features: Tensor) -> Tensor:
    """Normalize by mean and variance over the last dimension, as the equation says."""
    centred = features - features.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


@dataclass(frozen=True)
class Case:
    """A layer in one configuration, and a function that calls it on features, query first, and padding masks."""

    build: Callable[..., nn.Module]
    call: Callable[[nn.Module, Sequence[Tensor], Paddings], Any]
    widths: tuple[int, ...]
    aligned: bool = False
    """Whether all features have the same length."""
    spatial: tuple[int, ...] = ()
    """The spatial dimensions of the first features."""
    masked: bool = True
    """Whether the layer takes padding masks."""

    def make(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> nn.Module:
        """Build the layer in evaluation mode, with no parameter equal to zero or one."""
        return fill_parameters(self.build(device=device, dtype=dtype)).eval()

    def lengths(self, *candidates: int) -> list[int]:
        """Return a length for each of the features."""
        return [candidates[0 if self.aligned else index] for index in range(len(self.widths))]

    def features(
        self, draw: Callable[..., Tensor], batch: int, lengths: Sequence[int], dtype: torch.dtype = torch.float64
    ) -> list[Tensor]:
        """Draw the features."""
        return [
            draw(batch, length, *(self.spatial if index == 0 else ()), width, dtype=dtype)
            for index, (length, width) in enumerate(zip(lengths, self.widths, strict=True))
        ]

    def __call__(self, layer: nn.Module, features: Sequence[Tensor], paddings: Paddings | None = None) -> Any:
        return self.call(layer, features, [None] * len(features) if paddings is None else paddings)


def fill_parameters(module: nn.Module) -> nn.Module:
    """Draw all parameters at random, so that none is zero or one, and a missing bias is noticed."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.is_meta:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(drawn * (parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3))
    return module


def make_cmran(setting: str, **options: Any) -> CMRAN:
    """Build a small CMRAN in float64: 11 visual and 7 audio channels, 5 categories; no dropout."""
    model = CMRAN(
        setting,
        video_dim=11,
        audio_dim=7,
        num_categories=5,
        embed_dim=18,
        num_heads=3,
        dim_feedforward=29,
        dropout=0.0,
        input_dropout=0.0,
        **options,
    )
    return fill_parameters(model.double())


def _call_with_contexts(layer: nn.Module, features: Sequence[Tensor], paddings: Paddings) -> Any:
    return layer(
        features[0], list(features[1:]), query_padding_mask=paddings[0], context_padding_mask=list(paddings[1:])
    )


def _call_with_one_context(layer: nn.Module, features: Sequence[Tensor], paddings: Paddings) -> Any:
    return layer(*features, query_padding_mask=paddings[0], context_padding_mask=paddings[1])


def _call_aligned(layer: nn.Module, features: Sequence[Tensor], paddings: Paddings) -> Any:
    return layer(*features, padding_mask=paddings[0])


CASES: dict[str, Case] = {
    "cmra-self": Case(
        lambda **factory: CMRA(39, 3, **factory),
        lambda layer, features, paddings: layer(features[0], query_padding_mask=paddings[0]),
        (39,),
    ),
    "cmra-1-context": Case(lambda **factory: CMRA(39, 3, **factory), _call_with_one_context, (39, 39)),
    "cmra-4-contexts": Case(lambda **factory: CMRA(39, 3, **factory), _call_with_contexts, (39,) * 5),
    "cmra-other-width": Case(
        lambda **factory: CMRA(39, 3, context_dim=17, **factory), _call_with_contexts, (39, 17, 17)
    ),
    "cmra-without-query": Case(
        lambda **factory: CMRA(39, 3, context_dim=17, include_query=False, **factory), _call_with_one_context, (39, 17)
    ),
    "cmra-own-projections": Case(
        lambda **factory: CMRA(39, 3, context_dim=[17, 39], **factory), _call_with_contexts, (39, 17, 39)
    ),
    "cmra-own-without-query": Case(
        lambda **factory: CMRA(39, 3, context_dim=[17, 23], include_query=False, **factory),
        _call_with_contexts,
        (39, 17, 23),
    ),
    "cmra-without-bias": Case(lambda **factory: CMRA(39, 3, bias=False, **factory), _call_with_one_context, (39, 39)),
    "cross-relation": Case(
        lambda **factory: CrossModalRelation(39, 3, 29, **factory), _call_with_one_context, (39, 39)
    ),
    "pre-norm-relation": Case(
        lambda **factory: CrossModalRelation(
            39, 3, 29, context_dim=17, include_query=False, norm_first=True, activation="gelu", **factory
        ),
        _call_with_one_context,
        (39, 17),
    ),
    "internal-relation": Case(
        lambda **factory: InternalTemporalRelation(39, 3, 2, 29, **factory), _call_aligned, (39,)
    ),
    "relation-aware": Case(
        lambda **factory: RelationAware(19, 17, 39, 3, 1, 29, **factory), _call_with_one_context, (19, 17)
    ),
    "relation-aware-2-contexts": Case(
        lambda **factory: RelationAware(19, [17, 23], 39, 3, 1, 29, own_projections=True, **factory),
        _call_with_contexts,
        (19, 17, 23),
    ),
    "interaction": Case(lambda **factory: AVInteraction(39, 3, **factory), _call_aligned, (39, 39), aligned=True),
    "agsca": Case(
        lambda **factory: AGSCA(19, 17, 23, **factory),
        lambda layer, features, _: layer(*features),
        (19, 17),
        aligned=True,
        spatial=(3, 4),
        masked=False,
    ),
}


def slow_events(logits: Any, background: int, lengths: Sequence[int]) -> list[list[tuple[Any, ...]]]:
    """Return the events of each video second by second, as they are defined: start, end, category, score."""
    videos: list[list[tuple[Any, ...]]] = []
    for video, length in enumerate(lengths):
        row = logits.category[video].tolist()
        category = max(range(len(row)), key=lambda index: row[index])
        powers = [math.exp(logit - max(row)) for logit in row]
        events, running = [], []
        for second in range(length + 1):
            logit = logits.event[video, second].item() if second < length else -1.0
            if logit >= 0 and category != background:
                running.append(1 / (1 + math.exp(-logit)))
            elif running:
                score = sum(running) / len(running) * powers[category] / sum(powers)
                events.append((second - len(running), second, category, score))
                running = []
        videos.append(events)
    return videos
