"""AGSCA's two passes over the map; on a CPU a tile of segments at a time, which stays in the cache.

Written out, the layer writes and reads a map of the size of the video between any two of its steps. In tiles no such
map exists: a tile is used up at once, and only what the backward pass needs is kept of it. The plain forms are the
definition: they compute wherever tiles do not apply, and all higher derivatives.
Axes: * any (batch, time), S segments, N positions, C channels, D hidden.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

__all__ = ["attend", "pool", "tiles_apply"]

ROWS = 1024
"""Positions in a tile: enough for fast matrix products, few enough for the cache."""


def tiles_apply(video: Tensor, *projections: nn.Module) -> bool:
    """Whether nothing but plain eager computation on a CPU, in full precision, is asked for; tiles are for that.

    A wrapped, parametrised or hooked projection must be called; autocast and half precision round at other places.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and all(_is_plain(projection) for projection in projections)
        and all(
            type(tensor) in (Tensor, nn.Parameter)
            and tensor.device.type == "cpu"
            and tensor.dtype in (torch.float32, torch.float64)
            for tensor in (video, *(parameter for projection in projections for parameter in projection.parameters()))
        )
    )


def _is_plain(projection: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(projection) is nn.Linear and not any(getattr(projection, name) for name in hooks)


def pool(video: Tensor, projection: nn.Module, *, in_tiles: bool) -> tuple[Tensor, Tensor]:
    """Average the projected map over its positions: avgpool_N(ReLU(U_v v)).

    Args:
        video: v, (*, N, C).
        projection: U_v, maps C to C'.
        in_tiles: what :func:`tiles_apply` said of both projections.

    Returns:
        tuple[Tensor, Tensor]: the average (*, C'), and ``video`` once more, which only :func:`attend` may use: its
        gradient comes back through here, and is added to in place.
    """
    if not in_tiles:
        return _pool(video, projection)
    pooled, again, _ = _apply(_Pool, _flatten(video, 2), projection.weight, projection.bias)
    return pooled.view(*video.shape[:-2], pooled.shape[-1]), again.view(video.shape)


def attend(
    video: Tensor,
    again: Tensor,
    gate: Tensor,
    compared: Tensor,
    projection: nn.Module,
    bias: Tensor,
    *,
    in_tiles: bool,
) -> tuple[Tensor, Tensor]:
    r"""Sum the gated map over its positions, weighted by how well they fit the sound.

    .. math:: M_s = \operatorname{softmax}_N(\tanh(\operatorname{ReLU}(U (g \odot v)) \cdot w + b)), \qquad
        v_{cs} = g \odot \textstyle\sum_N M_s v

    Args:
        video: v, (*, N, C).
        again: the same, as :func:`pool` gave it.
        gate: g, (*, C).
        compared: w, what the positions are compared with, (*, D).
        projection: U, maps C to D.
        bias: b, (1,).
        in_tiles: what :func:`tiles_apply` said of both projections.

    Returns:
        tuple[Tensor, Tensor]: the sum v_cs (*, C), and the spatial map M_s (*, N).
    """
    if not in_tiles:
        return _attend(again, gate, compared, projection, bias)
    attended, spatial_map, *_ = _apply(
        _Attend,
        _flatten(again, 2),
        _flatten(video, 2),
        _flatten(gate, 1),
        _flatten(compared, 1),
        projection.weight,
        projection.bias,
        bias,
    )
    return attended.view(gate.shape), spatial_map.view(video.shape[:-1])


def _pool(video: Tensor, projection: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    return F.relu(projection(video)).mean(-2), video


def _attend(
    video: Tensor, gate: Tensor, compared: Tensor, projection: Callable[[Tensor], Tensor], bias: Tensor
) -> tuple[Tensor, Tensor]:
    logits = (F.relu(projection(gate.unsqueeze(-2) * video)) @ compared.unsqueeze(-1)).squeeze(-1) + bias
    spatial_map = logits.tanh().softmax(-1)
    return gate * (spatial_map.unsqueeze(-2) @ video).squeeze(-2), spatial_map


def _flatten(tensor: Tensor, trailing: int) -> Tensor:
    """Join all dimensions but the trailing ones, which may be none."""
    split = tensor.dim() - trailing
    return tensor.reshape(math.prod(tensor.shape[:split]), *tensor.shape[split:])


def _apply(function: type[Function], *inputs: Any) -> Any:
    may_go_back = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return function.apply(*inputs, may_go_back)


def _must_be_plain(*gradients: Tensor | None) -> bool:
    """Whether gradients are to be differentiated in their turn, or come many at once, as of ``is_grads_batched``."""
    try:
        for gradient in gradients:
            if gradient is not None:
                gradient.data_ptr()
    except RuntimeError:  # a batch that vmap takes apart has no memory of its own to work in
        return True
    return torch.is_grad_enabled()


def _tiles(video: Tensor) -> Iterator[slice]:
    step = max(1, ROWS // video.shape[1])
    return (slice(start, start + step) for start in range(0, len(video), step))


class _InTiles(Function):
    """What both passes share: two results, then what is kept for the backward pass.

    Inputs: routes, which are there for their gradient alone; the tensors, of which the first is the video (S, N, C) and
    has its gradient at the route if there is one; whether a backward pass may follow.
    """

    routes: int
    kept: int
    plain: Callable[..., tuple[Tensor, Tensor]]
    """The two results, by torch's own operations."""

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Save the tensors, and what ``forward`` kept."""
        kept = [tensor for tensor in output[2:] if tensor is not None]
        tensors = inputs[cls.routes : -1]
        ctx.save_for_backward(*tensors, *kept)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)  # those of what is kept would be large

    @classmethod
    def plain_backward(cls, ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs, which can be differentiated in their turn."""
        tensors = ctx.saved_tensors[: len(ctx.needs_input_grad) - 1 - cls.routes]
        d_video, *others = torch.func.vjp(cls.plain, *tensors)[1](gradients)
        return (d_video, *(None,) * cls.routes, *others, None)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """The results of a batch of inputs; nothing is kept, since their backward pass is the plain one."""
        batched = slice(cls.routes, -1)
        results = torch.vmap(cls.plain, in_dims[batched], randomness=info.randomness)(*inputs[batched])
        return (*results, *(None,) * cls.kept), (0, 0, *(None,) * cls.kept)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        """The tangents of the results: the transpose of the transpose, since torch does not nest forward mode."""
        tensors = ctx.saved_tensors
        results, pull, *_ = torch.func.vjp(cls.plain, *tensors)
        pushed = torch.func.vjp(pull, tuple(map(torch.zeros_like, results)))[1](
            tuple(
                torch.zeros_like(tensor) if tangent is None else tangent
                for tensor, tangent in zip(tensors, (tangents[0], *tangents[1 + cls.routes : -1]), strict=True)
            )
        )
        return (*pushed[0], *(None,) * cls.kept)


class _Pool(_InTiles):
    routes, kept = 0, 1

    @staticmethod
    def plain(video: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        pooled, _ = _pool(video, partial(F.linear, weight=weight, bias=bias))
        return pooled, video.view_as(video)

    @staticmethod
    def forward(video: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        pooled = video.new_empty(len(video), len(weight))
        # A byte for each channel is all that is kept of the projected map.
        is_on = video.new_empty(*video.shape[:2], len(weight), dtype=torch.bool) if keep else None
        for tile in _tiles(video):
            projected = F.linear(video[tile], weight, bias)
            if is_on is not None:
                torch.gt(projected, 0, out=is_on[tile])
            torch.mean(projected.relu_(), 1, out=pooled[tile])
        return pooled, video.view_as(video), is_on

    @staticmethod
    def backward(ctx: Any, d_pooled: Tensor | None, d_again: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        video, weight, bias, *kept = ctx.saved_tensors
        d_pooled = video.new_zeros(len(video), len(weight)) if d_pooled is None else d_pooled
        if _must_be_plain(d_pooled, d_again):
            return _Pool.plain_backward(ctx, d_pooled, torch.zeros_like(video) if d_again is None else d_again)
        needs_video, needs_weight, needs_bias, _keep = ctx.needs_input_grad
        # What comes was made by attend for this alone, so it may be added to.
        d_video = video.new_zeros(video.shape) if needs_video and d_again is None else d_again
        d_weight = torch.zeros_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias) if needs_bias else None
        d_mean = d_pooled / video.shape[1]
        for tile in _tiles(video):
            d_projected = kept[0][tile].to(video.dtype).mul_(d_mean[tile].unsqueeze(1)).flatten(0, 1)
            if d_bias is not None:
                d_bias += d_projected.sum(0)
            if d_weight is not None:
                d_weight.addmm_(d_projected.T, video[tile].flatten(0, 1))
            if d_video is not None:
                d_video[tile].flatten(0, 1).addmm_(d_projected, weight)
        return d_video, d_weight, d_bias, None


class _Attend(_InTiles):
    routes, kept = 1, 3

    @staticmethod
    def plain(
        video: Tensor, gate: Tensor, compared: Tensor, weight: Tensor, bias: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _attend(video, gate, compared, partial(F.linear, weight=weight, bias=bias), offset)

    @staticmethod
    def forward(
        _again: Tensor,
        video: Tensor,
        gate: Tensor,
        compared: Tensor,
        weight: Tensor,
        bias: Tensor,
        offset: Tensor,
        keep: bool,
    ) -> tuple[Tensor | None, ...]:
        segments, positions, channels = video.shape
        summed = video.new_empty(segments, channels)
        scores = video.new_empty(segments, positions)
        spatial_map = torch.empty_like(scores)
        projected_map = video.new_empty(segments, positions, len(weight)) if keep else None
        for tile in _tiles(video):
            projected = F.linear(gate[tile].unsqueeze(1) * video[tile], weight, bias).relu_()
            if projected_map is not None:
                projected_map[tile] = projected
            torch.bmm(projected, compared[tile].unsqueeze(-1), out=scores[tile].unsqueeze(-1))
            torch.softmax(scores[tile].add_(offset).tanh_(), -1, out=spatial_map[tile])
            torch.bmm(spatial_map[tile].unsqueeze(1), video[tile], out=summed[tile].unsqueeze(1))
        return gate * summed, spatial_map, *((summed, scores, projected_map) if keep else (None, None, None))

    @staticmethod
    def backward(ctx: Any, d_attended: Tensor | None, d_map: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        video, gate, compared, weight, bias, _offset, *kept = ctx.saved_tensors
        d_attended = torch.zeros_like(gate) if d_attended is None else d_attended
        d_map = video.new_zeros(video.shape[:2]) if d_map is None else d_map
        if _must_be_plain(d_attended, d_map):
            return _Attend.plain_backward(ctx, d_attended, d_map)
        needs_video, _, _, _, needs_weight, *_ = ctx.needs_input_grad
        summed, scores, projected_map = kept
        spatial_map = scores.softmax(-1)
        d_video = video.new_empty(video.shape) if needs_video else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        d_bias, d_compared = torch.zeros_like(bias), torch.empty_like(compared)
        d_gate, d_summed = d_attended * summed, d_attended * gate
        d_logits = torch.empty_like(scores)
        for tile in _tiles(video):
            seen, opened, weights = video[tile], gate[tile].unsqueeze(1), spatial_map[tile]
            projected = projected_map[tile]
            d_weights = torch.bmm(seen, d_summed[tile].unsqueeze(-1)).squeeze(-1).add_(d_map[tile])
            d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))
            d_logit = torch.mul(d_scores, 1 - scores[tile] ** 2, out=d_logits[tile])
            torch.bmm(d_logit.unsqueeze(1), projected, out=d_compared[tile].unsqueeze(1))
            d_projected = (d_logit.unsqueeze(-1) * compared[tile].unsqueeze(1)).mul_(projected > 0).flatten(0, 1)
            d_bias += d_projected.sum(0)
            if d_weight is not None:
                d_weight.addmm_(d_projected.T, (opened * seen).flatten(0, 1))
            d_gated = (d_projected @ weight).view_as(seen)
            d_gate[tile] += (d_gated * seen).sum(1)
            if d_video is not None:
                torch.mul(weights.unsqueeze(-1), d_summed[tile].unsqueeze(1), out=d_video[tile])
                d_video[tile].addcmul_(d_gated, opened)
        return d_video, None, d_gate, d_compared, d_weight, d_bias, d_logits.sum().view(1), None
