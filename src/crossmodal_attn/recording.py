"""Record the attention maps of a model's layers, and summarize attention weights by memory.

Axes: * any, such as (batch, heads), T query length, M memory length, N memories, K segments attended to most.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossmodal_attn._checks import check_size, check_tensor
from crossmodal_attn._recorders import Recorder
from crossmodal_attn.agsca import AGSCA
from crossmodal_attn.cmra import CMRA

__all__ = ["RelationSummary", "record_attention", "summarize_relations"]


@overload
@contextmanager
def record_attention(model: nn.Module, *, every_call: Literal[False] = False) -> Iterator[dict[str, Tensor]]: ...


@overload
@contextmanager
def record_attention(model: nn.Module, *, every_call: Literal[True]) -> Iterator[dict[str, list[Tensor]]]: ...


@contextmanager
def record_attention(
    model: nn.Module, *, every_call: bool = False
) -> Iterator[dict[str, Tensor]] | Iterator[dict[str, list[Tensor]]]:
    """Collect the attention maps of every layer of this library inside ``model``, whoever calls it.

    The outputs and gradients are unchanged, and ``model`` is not touched: what is copied or saved inside the context is
    an ordinary model, whose copies are not recorded. Calls from all threads are. Once the context is left, nothing
    changes what was recorded.

    - Compiled code runs eagerly inside the context, in all threads, so that the maps can be seen.
    - Under :func:`torch.func.vmap` the dimension that is mapped over comes first, before those named below.
    - The passes that activation checkpointing repeats in the backward pass are not recorded again; the backward pass
      may be inside the context or outside.

    Args:
        model: any module that holds layers of this library, or is one.
        every_call: whether to keep the maps of every call of a layer, as a list in the order of the calls, and not of
            the latest alone.

    Yields:
        dict[str, Tensor] | dict[str, list[Tensor]]: the maps, detached, by module path: ``path`` for the weights
        (B, H, T, M) of a :class:`CMRA`, ``path.channel_map`` (*, C) and ``path.spatial_map`` (*, *spatial) for an
        :class:`AGSCA`. Where ``model`` itself is the layer, the path is ``""`` and the keys are ``""``,
        ``"channel_map"`` and ``"spatial_map"``. A layer that has not been called has no key.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it holds no layer that attends.

    Examples:
        >>> import torch
        >>> from crossmodal_attn import AVInteraction
        >>> model = torch.nn.ModuleDict({"fusion": AVInteraction(256, num_heads=4)})
        >>> with record_attention(model) as maps:
        ...     output = model["fusion"](torch.randn(2, 10, 256), torch.randn(2, 10, 256))
        >>> {path: tuple(weights.shape) for path, weights in maps.items()}
        {'fusion.attention': (2, 4, 10, 20)}
        >>> with record_attention(model, every_call=True) as maps:
        ...     for length in (3, 5):
        ...         output = model["fusion"](torch.randn(2, length, 256), torch.randn(2, length, 256))
        >>> [tuple(weights.shape) for weights in maps["fusion.attention"]]
        [(2, 4, 3, 6), (2, 4, 5, 10)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {_clean(path): module for path, module in model.named_modules() if isinstance(module, (CMRA, AGSCA))}
    if not layers:
        raise ValueError(
            f"model must hold a layer of crossmodal_attn (CMRA, AGSCA or one built of them), got {type(model).__name__}"
        )
    recorder = Recorder(layers, every_call)
    recorder.open()
    try:
        yield recorder.maps
    finally:
        recorder.close()


def _clean(path: str) -> str:
    """Drop the step that torch.compile puts before the module that it wraps."""
    return ".".join(name for name in path.split(".") if name != "_orig_mod")


class RelationSummary(NamedTuple):
    """What :func:`summarize_relations` finds, for each segment of the query.

    Attributes:
        shares: (*, T, N), the attention that goes to each memory, in the order [contexts..., query].
        top_weights: (*, T, K), the K largest weights, descending; of equal ones the first in the memory comes first.
        top_memories: int64 (*, T, K), the index of the memory that each of them is in; -1 where the weight is zero.
        top_segments: int64 (*, T, K), the index of its segment within that memory; -1 where the weight is zero.
    """

    shares: Tensor
    top_weights: Tensor
    top_memories: Tensor
    top_segments: Tensor

    @property
    def intra(self) -> Tensor:
        """(*, T), the share of the last memory: the intra-modality relation, where the query is that memory."""
        return self.shares[..., -1]

    @property
    def inter(self) -> Tensor:
        """(*, T, N - 1), the shares of the memories before it: the inter-modality relations."""
        return self.shares[..., :-1]


# Named, so that torch.export.save and AOTInductor can write what returns it.
if _register := getattr(torch.utils._pytree, "_register_namedtuple", None):
    _register(RelationSummary, serialized_type_name="crossmodal_attn.RelationSummary")


def summarize_relations(weights: Tensor, lengths: Sequence[int], *, k: int = 3) -> RelationSummary:
    """Sum attention weights by memory, and find the segments that are attended to most.

    These are the intra- and inter-modality relations of Xu et al., ACM MM 2020, and the segments that its Figure 5
    shows. For the mean over heads, give ``weights.mean(1)``. Where the query is no part of the memory, as in
    :class:`AVInteraction`, whose memory is [audio, video], read ``shares`` alone.

    Args:
        weights: (*, T, M), such as the (B, H, T, M) of ``need_weights=True`` or :func:`record_attention`.
        lengths: the lengths of the memories, in their order, [contexts..., query]; they sum to M.
        k: K, how many segments to find, at least 1; it may exceed M.

    Returns:
        RelationSummary: ``shares`` (*, T, N), which sum to one, or to zero where a query segment may attend to nothing;
        ``top_weights``, ``top_memories`` and ``top_segments`` (*, T, K); ``intra`` (*, T) and ``inter`` (*, T, N - 1),
        which are views of ``shares``. Rows at padding of the query are meaningless.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if ``weights`` has fewer than two dimensions, ``lengths`` do not sum to M, or ``k`` is below 1.

    Examples:
        >>> weights = torch.tensor([[0.1, 0.2, 0.4, 0.3], [0.0, 0.9, 0.1, 0.0]])  # memory: [audio, video]
        >>> summary = summarize_relations(weights, [2, 2], k=2)
        >>> summary.intra, summary.inter
        (tensor([0.7000, 0.1000]), tensor([[0.3000],
                [0.9000]]))
        >>> summary.top_memories.tolist(), summary.top_segments.tolist()            # 1 is video: its segments 0 and 1
        ([[1, 1], [0, 1]], [[0, 1], [1, 0]])
    """
    check_tensor("weights", weights)
    if not weights.is_floating_point():
        raise TypeError(f"weights must have a floating-point dtype, got {weights.dtype}")
    if weights.dim() < 2:
        raise ValueError(f"weights must have shape (*, query length, memory length), got {tuple(weights.shape)}")
    if not isinstance(lengths, (list, tuple)):
        raise TypeError(f"lengths must be a list or tuple of the memories' lengths, got {type(lengths).__name__}")
    for index, length in enumerate(lengths):
        check_size(f"lengths[{index}]", length, minimum=0)
    check_size("k", k)
    size = weights.shape[-1]
    if not lengths or sum(lengths) != size:
        raise ValueError(f"lengths must sum to the memory length of weights, {size}, got {list(lengths)}")

    shares = torch.stack([part.sum(-1) for part in weights.split(list(lengths), -1)], -1)
    # A stable sort, since torch.topk leaves open which of equal weights comes first.
    top_weights, columns = (found[..., :k] for found in weights.sort(dim=-1, descending=True, stable=True))
    missing = (0, k - top_weights.shape[-1])
    top_weights, columns = F.pad(top_weights, missing), F.pad(columns, missing)
    top_memories, top_segments = (
        torch.where(top_weights == 0, -1, table[columns]) for table in _places(lengths, weights.device)
    )
    return RelationSummary(shares, top_weights, top_memories, top_segments)


def _places(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For each column of the memory the index of its memory, and that of its segment within it: int64 (M + 1,) each.

    The column beyond the last is there for a memory without any.
    """
    lengths = [*lengths, 1]
    memories = [torch.full((length,), index, device=device) for index, length in enumerate(lengths)]
    segments = [torch.arange(length, device=device) for length in lengths]
    return torch.cat(memories), torch.cat(segments)
