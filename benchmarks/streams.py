"""Row group "streams": a new segment of a stream with memories, against the whole stream again under a causal mask.

The batch is one stream. Video and audio have T segments each, so the memory of a cross-modal relation has 2 T. A step
with memories contains everything that the next step needs: the new segment is projected and appended. The steps follow
one another, up to a sixteenth more than T segments; then the stream begins again with T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from benchmarks.measuring import SEED, Form, Session, compare
from crossmodal_attn import CMRA, Memory, RelationAware, relation_mask

__all__ = ["STEP", "STREAMS", "TITLE", "WHOLE", "run"]

TITLE = "A new segment of a stream"
LENGTHS = (100, 400, 1600)
WIDTH, HEADS = 256, 4
STEP, WHOLE = "with memories", "the whole again"

Step: TypeAlias = Callable[[Tensor, Tensor, list[Memory]], tuple[Tensor, list[Memory]]]
"""Takes a segment of video and of audio and the memories. Returns the output and the longer memories."""
Stream: TypeAlias = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], list[Memory]], Step]
"""The layer; its outputs for whole video and audio; the memories of features (1, S, 256); and a step."""


def _self_attention(mask: Tensor, _cross: Tensor) -> Stream:
    layer = CMRA(WIDTH, HEADS)

    def step(video: Tensor, audio: Tensor, memories: list[Memory]) -> tuple[Tensor, list[Memory]]:
        return layer(video, memories[0]), [memories[0].append(layer.remember(video, own=True))]

    return (
        layer,
        lambda video, _: layer(video, attn_mask=mask),
        lambda features: [layer.remember(features, own=True)],
        step,
    )


def _cross_modal(_own: Tensor, mask: Tensor) -> Stream:
    layer = CMRA(WIDTH, HEADS)

    def step(video: Tensor, audio: Tensor, memories: list[Memory]) -> tuple[Tensor, list[Memory]]:
        heard = memories[0].append(layer.remember(audio))
        return layer(video, [heard, memories[1]]), [heard, memories[1].append(layer.remember(video, own=True))]

    return (
        layer,
        lambda video, audio: layer(video, audio, attn_mask=mask),
        lambda features: [layer.remember(features), layer.remember(features, own=True)],
        step,
    )


def _relation_aware(own_mask: Tensor, mask: Tensor) -> Stream:
    module = RelationAware(WIDTH, WIDTH, WIDTH, HEADS)
    blocks, last = list(module.internal_relation.layers), module.cross_relation

    def remember(features: Tensor) -> list[Memory]:
        own: list[Memory] = [block.remember(features, own=True) for block in blocks]  # type: ignore[operator]
        return [*own, last.remember(features), last.remember(features, own=True)]

    def step(video: Tensor, audio: Tensor, memories: list[Memory]) -> tuple[Tensor, list[Memory]]:
        *pasts, heard, seen = memories
        features, query, kept = module.context_proj(audio), module.query_proj(video), []
        for block, past in zip(blocks, pasts, strict=True):
            kept.append(past.append(block.remember(features, own=True)))  # type: ignore[operator]
            features = block(features, past)
        heard = heard.append(last.remember(features))
        output = last(query, [heard, seen])
        return output, [*kept, heard, seen.append(last.remember(query, own=True))]

    return (
        module,
        lambda video, audio: module(video, audio, attn_mask=mask, context_attn_mask=own_mask),
        remember,
        step,
    )


STREAMS: dict[str, Callable[[Tensor, Tensor], Stream]] = {
    "CMRA(video)": _self_attention,
    "CMRA(video, audio)": _cross_modal,
    "RelationAware(video, audio)": _relation_aware,
}
"""By name, the function that builds the stream from the causal masks (T, T) and (T, 2 T)."""


def _follow(step: Step, video: Tensor, audio: Tensor, memories: list[Memory], count: int) -> Callable[[], object]:
    """Return a function that takes the next step of a stream, and begins again after ``count`` steps."""
    longer, done = memories, 0

    def call() -> Tensor:
        nonlocal longer, done
        output, longer = step(video, audio, longer if done % count else memories)
        done += 1
        return output

    return call


def run(session: Session) -> Iterator[dict[str, Any]]:
    """Measure every layer at every length, in inference."""
    for name, build in STREAMS.items():
        for length in LENGTHS[:1] if session.quick else LENGTHS:
            case = {"layer": name, "length": length}
            if reason := session.late:
                yield {"case": case, "skipped": reason}
                continue
            torch.manual_seed(SEED)
            masks = [relation_mask(length, contexts, causal=True) for contexts in ([], [length])]
            module, whole, remember, step = build(*(mask.to(session.device) for mask in masks))
            module.to(session.device).eval()
            video, audio, features = torch.randn(3, 1, length, WIDTH, device=session.device)
            with torch.no_grad():
                # The time of a step depends on the length of the memories, and not on what they hold.
                memories = [memory.append(memory, max_length=length - 1) for memory in remember(features)]
            follow = _follow(step, video[:, -1:], audio[:, -1:], memories, length // 16)
            yield compare(
                session,
                case,
                [
                    Form(WHOLE, torch.no_grad()(lambda: whole(video, audio))),  # noqa: B023 - called in this iteration
                    Form(STEP, torch.no_grad()(follow)),
                ],
                [(WHOLE, STEP)],
            )
