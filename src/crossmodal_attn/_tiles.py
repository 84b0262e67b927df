"""Compute AGSCA's two passes over the visual map in tiles that fit into the cache of a CPU.

Without tiles, each step of the layer writes a map as large as the video, and the next step reads it. With tiles, only
the maps that the backward pass needs are built. The plain functions ``_pool`` and ``_attend`` define the results. They
run where tiles do not apply, and they compute all higher derivatives.
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
from torch.nn.modules import module as torch_module

from crossmodal_attn._eager import runs_eagerly

__all__ = ["attend_map", "tiles_apply"]

ROWS = 1024
"""The approximate number of positions in a tile: large enough for fast matrix products, small enough for the cache."""

LINEAR_FORWARD = nn.Linear.forward
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where torch keeps the hooks of a module; those of all modules have the prefix ``_global``."""


def attend_map(
    video: Tensor,
    channel_projection: nn.Module,
    excite: Callable[[Tensor], Tensor],
    spatial_projection: nn.Module,
    scorer: Tensor,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weight the channels and then the positions of a visual map, and sum it over the positions.

    .. math::
        M_c &= \operatorname{excite}(\operatorname{avgpool}_N \operatorname{ReLU}(U v)), \qquad g = M_c + 1 \\
        M_s &= \operatorname{softmax}_N(\tanh(\operatorname{ReLU}(U' (g \odot v)) \cdot w + b)), \qquad
            v_{cs} = g \odot \textstyle\sum_N M_s v

    Args:
        video: v, (*, N, C).
        channel_projection: U, which maps C to C'.
        excite: maps the pooled map (*, C') to the channel map M_c (*, C).
        spatial_projection: U', which maps C to D.
        scorer: w, the vector whose dot product with each projected position gives its logit, (*, D).
        bias: b, (1,).

    Returns:
        tuple[Tensor, Tensor, Tensor]: the sum v_cs (*, C), the channel map M_c (*, C), the spatial map M_s (*, N).
    """
    if not tiles_apply(video, channel_projection, spatial_projection):
        channel_map = excite(_pool(video, channel_projection))
        attended, spatial_map = _attend(video, channel_map + 1, scorer, spatial_projection, bias)
        return attended, channel_map, spatial_map
    dtype = _compute_dtype(video)
    flat = _flatten(video, 2).to(dtype)
    pooled, route, _ = _apply(_Pool, flat, *_parameters(channel_projection, dtype))
    channel_map = excite(pooled.view(*video.shape[:-2], pooled.shape[-1]))
    attended, spatial_map, *_ = _apply(
        _Attend,
        route if flat.requires_grad else flat,
        flat,
        _flatten(channel_map + 1, 1).to(dtype),
        _flatten(scorer, 1).to(dtype),
        *_parameters(spatial_projection, dtype),
        bias,
    )
    return attended.view(channel_map.shape), channel_map, spatial_map.view(video.shape[:-1])


def tiles_apply(video: Tensor, *projections: nn.Module) -> bool:
    """Return whether tiles apply: torch runs eagerly on a CPU, and the projections are unmodified ``nn.Linear``.

    A projection that is replaced, wrapped or has hooks must be called as a module, on the whole map.
    """
    return (
        runs_eagerly()
        and not any(getattr(torch_module, f"_global{kind}") for kind in HOOKS)
        and all(_is_plain(projection) for projection in projections)
        and all(
            type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"
            for tensor in (video, *(parameter for projection in projections for parameter in projection.parameters()))
        )
    )


def _is_plain(projection: nn.Module) -> bool:
    return (
        type(projection) is nn.Linear
        and getattr(projection.forward, "__func__", None) is LINEAR_FORWARD
        and projection._compiled_call_impl is None
        and projection.bias is not None
        and not any(getattr(projection, kind) for kind in HOOKS)
    )


def _compute_dtype(video: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with ``video``, which autocast may change."""
    # Autocast does not convert float64.
    if torch.is_autocast_enabled("cpu") and video.dtype != torch.float64:
        return torch.get_autocast_dtype("cpu")
    return video.dtype


def _parameters(projection: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return projection.weight.to(dtype), projection.bias.to(dtype)


def _pool(video: Tensor, projection: Callable[[Tensor], Tensor]) -> Tensor:
    return F.relu(projection(video)).mean(-2)


def _attend(
    video: Tensor, gate: Tensor, scorer: Tensor, projection: Callable[[Tensor], Tensor], bias: Tensor
) -> tuple[Tensor, Tensor]:
    logits = (F.relu(projection(gate.unsqueeze(-2) * video)) @ scorer.unsqueeze(-1)).squeeze(-1) + bias
    spatial_map = logits.tanh().softmax(-1)
    return gate * (spatial_map.unsqueeze(-2) @ video).squeeze(-2), spatial_map


def _flatten(tensor: Tensor, trailing: int) -> Tensor:
    """Join all dimensions except the last ``trailing`` ones."""
    split = tensor.dim() - trailing
    return tensor.reshape(math.prod(tensor.shape[:split]), *tensor.shape[split:])


def _apply(function: type[Function], *inputs: Any) -> Any:
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return function.apply(*inputs, keep)


def _must_be_plain(*gradients: Tensor | None) -> bool:
    """Return whether the backward pass must use differentiable torch operations.

    This is so if the gradients will be differentiated again (``create_graph``), or are batched (``is_grads_batched``).
    """
    try:
        for gradient in gradients:
            if gradient is not None:
                gradient.data_ptr()
    except RuntimeError:  # a tensor inside vmap has no data pointer
        return True
    return torch.is_grad_enabled()


def _tiles(video: Tensor) -> Iterator[slice]:
    step = max(1, ROWS // video.shape[1])
    return (slice(start, start + step) for start in range(0, len(video), step))


def _buffer(video: Tensor, width: int) -> Tensor:
    """Allocate the memory of one tile, which all tiles reuse."""
    return video.new_empty(min(len(video), max(1, ROWS // video.shape[1])), video.shape[1], width)


def _project(tile: Tensor, weight: Tensor, bias: Tensor, buffer: Tensor) -> Tensor:
    projected = buffer[: len(tile)]
    torch.addmm(bias, tile.flatten(0, 1), weight.T, out=projected.flatten(0, 1))
    return projected


def _zeros(parameter: Tensor) -> Tensor:
    """Return zeros for a sum over tiles, in at least float32."""
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product in place, by an operator that FLOP counters support."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, out=total)
    else:
        total += left @ right


class _InTiles(Function):
    """Base class of both passes.

    Inputs: ``routes`` views of the video, then the inputs of ``plain``, whose first is the video (S, N, C), then
    whether a backward pass may follow. Outputs: two results, then the tensors to keep for the backward pass.

    Both passes contribute to the gradient of the video. The first pass also returns a view of the video, the route,
    which the second pass takes as an input. In the backward pass, the second pass returns its gradient of the video as
    the gradient of the route. The first pass receives this tensor, and adds its own gradient to it in place.
    Higher-order gradients must not be modified in place. So the second pass also takes and saves the video itself, and
    these gradients reach it directly.
    """

    routes: int
    kept: int
    plain: Callable[..., tuple[Tensor, Tensor]]
    """Computes the two results by torch's own operations."""

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Save the input tensors and the kept outputs."""
        kept = [tensor for tensor in output[2:] if tensor is not None]
        tensors = inputs[cls.routes : -1]
        ctx.save_for_backward(*tensors, *kept)
        ctx.save_for_forward(*tensors)
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)  # gradients of the kept outputs would be large

    @classmethod
    def plain_backward(cls, ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the inputs in a form that can be differentiated again."""
        tensors = ctx.saved_tensors[: len(ctx.needs_input_grad) - 1 - cls.routes]
        d_video, *others = torch.func.vjp(cls.plain, *tensors)[1](gradients)
        return (d_video, *(None,) * cls.routes, *others, None)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        """Compute the results of a batch of inputs by ``plain``. Nothing is kept, as the backward pass is plain too."""
        batched = slice(cls.routes, -1)
        results = torch.vmap(cls.plain, in_dims[batched], randomness=info.randomness)(*inputs[batched])
        return (*results, *(None,) * cls.kept), (0, 0, *(None,) * cls.kept)

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Any) -> Any:
        """Compute the tangents by two reverse passes, since torch does not support nested forward mode."""
        tensors = ctx.saved_tensors
        results, pull, *_ = torch.func.vjp(cls.plain, *tensors)
        pushed = torch.func.vjp(pull, tuple(map(torch.zeros_like, results)))[1](
            tuple(
                torch.zeros_like(tensor) if tangent is None else tangent
                for tensor, tangent in zip(tensors, tangents[cls.routes : -1], strict=True)
            )
        )
        return (*pushed[0], *(None,) * cls.kept)


class _Pool(_InTiles):
    """Return the average of the projected map, and a view of the video, the route of the second pass."""

    routes, kept = 0, 1

    @staticmethod
    def plain(video: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return _pool(video, partial(F.linear, weight=weight, bias=bias)), video.view_as(video)

    @staticmethod
    def forward(video: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        pooled = video.new_empty(len(video), len(weight))
        # Of the projected map, only its sign is kept, in one byte per channel. Torch reads int8 faster than bool.
        is_on = video.new_empty(*video.shape[:2], len(weight), dtype=torch.int8) if keep else None
        buffer = _buffer(video, len(weight))
        for tile in _tiles(video):
            projected = _project(video[tile], weight, bias, buffer)
            if is_on is not None:
                torch.gt(projected, 0, out=is_on[tile])
            torch.mean(projected.relu_(), 1, out=pooled[tile])
        return pooled, video.view_as(video), is_on

    @staticmethod
    def backward(ctx: Any, d_pooled: Tensor | None, d_route: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        video, weight, bias, *kept = ctx.saved_tensors
        d_pooled = video.new_zeros(len(video), len(weight)) if d_pooled is None else d_pooled
        if _must_be_plain(d_pooled, d_route):
            return _Pool.plain_backward(ctx, d_pooled, torch.zeros_like(video) if d_route is None else d_route)
        needs_video, needs_weight, needs_bias, _keep = ctx.needs_input_grad
        # _Attend made this gradient for this function only, so it can be modified in place.
        d_video = video.new_zeros(video.shape) if needs_video and d_route is None else d_route
        d_weight = _zeros(weight) if needs_weight else None
        d_bias = _zeros(bias) if needs_bias else None
        d_mean = d_pooled / video.shape[1]
        buffer = _buffer(video, len(weight))
        for tile in _tiles(video):
            d_projected = buffer[: len(video[tile])].copy_(kept[0][tile]).mul_(d_mean[tile].unsqueeze(1)).flatten(0, 1)
            if d_bias is not None:
                d_bias += d_projected.sum(0)
            if d_weight is not None:
                _add_product(d_weight, d_projected.T, video[tile].flatten(0, 1))
            if d_video is not None:
                _add_product(d_video[tile].flatten(0, 1), d_projected, weight)
        return d_video, _as(weight, d_weight), _as(bias, d_bias), None


class _Attend(_InTiles):
    """Return the weighted sum of the gated map over its positions, and the spatial map that weights them."""

    routes, kept = 1, 3

    @staticmethod
    def plain(
        video: Tensor, gate: Tensor, scorer: Tensor, weight: Tensor, bias: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor]:
        return _attend(video, gate, scorer, partial(F.linear, weight=weight, bias=bias), offset)

    @staticmethod
    def forward(
        _route: Tensor,
        video: Tensor,
        gate: Tensor,
        scorer: Tensor,
        weight: Tensor,
        bias: Tensor,
        offset: Tensor,
        keep: bool,
    ) -> tuple[Tensor | None, ...]:
        summed = torch.empty_like(gate)
        # Under autocast the offset stays in float32, and so do the scores.
        scores = video.new_empty(video.shape[:2], dtype=torch.promote_types(video.dtype, offset.dtype))
        projected_map = video.new_empty(*video.shape[:2], len(weight)) if keep else None
        gated_map, projected = _buffer(video, video.shape[-1]), _buffer(video, len(weight))
        for tile in _tiles(video):
            if projected_map is not None:
                projected = projected_map[tile]
            gated = torch.mul(gate[tile].unsqueeze(1), video[tile], out=gated_map[: len(video[tile])])
            projected = _project(gated, weight, bias, projected).relu_()
            logits = torch.bmm(projected, scorer[tile].unsqueeze(-1)).squeeze(-1) + offset
            spatial_map = torch.tanh(logits, out=scores[tile]).softmax(-1).to(video.dtype)
            torch.bmm(spatial_map.unsqueeze(1), video[tile], out=summed[tile].unsqueeze(1))
        return gate * summed, scores.softmax(-1), *((summed, scores, projected_map) if keep else (None, None, None))

    @staticmethod
    def backward(ctx: Any, d_attended: Tensor | None, d_map: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        video, gate, scorer, weight, bias, offset, *kept = ctx.saved_tensors
        d_attended = torch.zeros_like(gate) if d_attended is None else d_attended
        d_map = offset.new_zeros(video.shape[:2]) if d_map is None else d_map
        if _must_be_plain(d_attended, d_map):
            return _Attend.plain_backward(ctx, d_attended, d_map)
        needs_video, _, _, _, needs_weight, *_ = ctx.needs_input_grad
        summed, scores, projected_map = kept
        spatial_map = scores.softmax(-1)
        d_video = video.new_empty(video.shape) if needs_video else None
        d_weight = _zeros(weight) if needs_weight else None
        d_bias, d_scorer = _zeros(bias), torch.empty_like(scorer)
        d_gate, d_summed = d_attended * summed, d_attended * gate
        d_logits = torch.empty_like(scores)
        buffers = _buffer(video, len(weight)), _buffer(video, video.shape[-1]), _buffer(video, video.shape[-1])
        for tile in _tiles(video):
            seen, gate_tile, weights = video[tile], gate[tile].unsqueeze(1), spatial_map[tile]
            projected = projected_map[tile]
            d_weights = torch.bmm(seen, d_summed[tile].unsqueeze(-1)).squeeze(-1) + d_map[tile]
            d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True))
            d_logit = torch.mul(d_scores, 1 - scores[tile] ** 2, out=d_logits[tile]).to(video.dtype)
            torch.bmm(d_logit.unsqueeze(1), projected, out=d_scorer[tile].unsqueeze(1))
            d_projected, scratch, d_gated = (buffer[: len(seen)] for buffer in buffers)
            torch.mul(d_logit.unsqueeze(-1), scorer[tile].unsqueeze(1), out=d_projected)
            torch.ops.aten.threshold_backward.grad_input(d_projected, projected, 0, grad_input=d_projected)
            d_projected = d_projected.flatten(0, 1)
            d_bias += d_projected.sum(0)
            if d_weight is not None:
                _add_product(d_weight, d_projected.T, torch.mul(gate_tile, seen, out=scratch).flatten(0, 1))
            torch.mm(d_projected, weight, out=d_gated.flatten(0, 1))
            d_gate[tile] += torch.mul(d_gated, seen, out=scratch).sum(1)
            if d_video is not None:
                torch.mul(weights.to(video.dtype).unsqueeze(-1), d_summed[tile].unsqueeze(1), out=d_video[tile])
                d_video[tile].addcmul_(d_gated, gate_tile)
        d_offset = d_logits.sum().view(1).to(offset.dtype)
        return d_video, None, d_gate, d_scorer, _as(weight, d_weight), _as(bias, d_bias), d_offset, None


def _as(parameter: Tensor, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.to(parameter.dtype)
