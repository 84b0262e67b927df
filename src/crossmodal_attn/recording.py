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
    """Record the attention maps of every layer of this library inside ``model``.

    No call of the model has to change. Outputs and gradients stay the same. ``model`` itself is not modified. You can
    copy or save it inside the context: the copy is an ordinary model, and its calls are not recorded. Calls from all
    threads are recorded. After the context, the recorded maps never change.

    - Inside the context, compiled code runs eagerly in all threads, even if it is compiled there. For this the first
      recording of a process imports PyTorch's compiler, which takes about a second.
    - Under :func:`torch.func.vmap`, the mapped dimension comes first, before the dimensions named below.
    - Activation checkpointing repeats forward passes; only the first is recorded. The backward pass may run inside the
      context or after it.

    Args:
        model: any module that holds layers of this library, or is one.
        every_call: whether to keep the maps of every call of a layer, as a list in the order of the calls. If False,
            only the maps of the latest call are kept.

    Yields:
        dict[str, Tensor] | dict[str, list[Tensor]]: the maps, detached, by module path: ``path`` for the weights
        (B, H, T, M) of a :class:`CMRA`, or (B, H, T, W) if it is called with a :func:`relation_window`, whose method
        ``to_dense`` converts them; ``path.channel_map`` (*, C) and ``path.spatial_map`` (*, *spatial) for an
        :class:`AGSCA`. If ``model`` itself is the layer, the keys are ``""``, ``"channel_map"`` and ``"spatial_map"``.
        A layer that was not called has no key.

    Raises:
        ValueError: if ``model`` contains neither a :class:`CMRA` nor an :class:`AGSCA`.

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
            "model must contain a layer of crossmodal_attn (CMRA, AGSCA or a block of them), "
            f"got {type(model).__name__} without one"
        )
    recorder = Recorder(layers, every_call)
    recorder.open()
    try:
        yield recorder.maps
    finally:
        recorder.close()


def _clean(path: str) -> str:
    """Remove the name ``_orig_mod``, which torch.compile inserts in the path of a module."""
    return ".".join(name for name in path.split(".") if name != "_orig_mod")


class RelationSummary(NamedTuple):
    """Hold the result of :func:`summarize_relations` for each query segment.

    Attributes:
        shares: (*, T, N), the sum of the attention weights in each memory, in the order [contexts..., query].
        top_weights: (*, T, K), the K largest weights, in descending order. Equal weights keep the order of the memory.
        top_memories: int64 (*, T, K), the index of the memory of each of these weights; -1 where the weight is zero.
        top_segments: int64 (*, T, K), the index of the segment within that memory; -1 where the weight is zero.
    """

    shares: Tensor
    top_weights: Tensor
    top_memories: Tensor
    top_segments: Tensor

    @property
    def intra(self) -> Tensor:
        """Return the share of the last memory (*, T): the intra-modality relation if the query is that memory."""
        return self.shares[..., -1]

    @property
    def inter(self) -> Tensor:
        """Return the shares of the other memories (*, T, N - 1): the inter-modality relations."""
        return self.shares[..., :-1]


# A registered name lets torch.export.save and AOTInductor write programs that return this type.
if _register := getattr(torch.utils._pytree, "_register_namedtuple", None):
    _register(RelationSummary, serialized_type_name="crossmodal_attn.RelationSummary")


def summarize_relations(weights: Tensor, lengths: Sequence[int], *, k: int = 3) -> RelationSummary:
    """Sum attention weights over each memory, and find the segments with the largest weights.

    The sums are the intra- and inter-modality relations of Xu et al., ACM MM 2020; its Figure 5 shows the segments with
    the largest weights. For the mean over heads, give ``weights.mean(1)``. If the query is not part of the memory, as
    in :class:`AVInteraction` with its memory [audio, video], ``intra`` and ``inter`` have no meaning: use ``shares``.

    Args:
        weights: (*, T, M), such as the (B, H, T, M) from ``need_weights=True`` or :func:`record_attention`. Convert
            those of a :func:`relation_window` by its method ``to_dense``.
        lengths: the length of each memory, in the order [contexts..., query]; they sum to M.
        k: K, the number of segments to find, at least 1; it may exceed M.

    Returns:
        RelationSummary: ``shares`` (*, T, N), which sum to one, or to zero if a query segment may attend to nothing;
        ``top_weights``, ``top_memories`` and ``top_segments`` (*, T, K); ``intra`` (*, T) and ``inter`` (*, T, N - 1),
        views of ``shares``. Rows of padded query segments are meaningless.

    Raises:
        ValueError: if ``lengths`` do not sum to M.

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
        raise ValueError(
            f"lengths must sum to the memory length of weights, {size}, got {list(lengths)}: if the weights are "
            "those of a relation_window, convert them by its method to_dense"
        )

    shares = torch.stack([part.sum(-1) for part in weights.split(list(lengths), -1)], -1)
    # A stable sort, since torch.topk does not define the order of equal weights.
    top_weights, columns = (found[..., :k] for found in weights.sort(dim=-1, descending=True, stable=True))
    missing = (0, k - top_weights.shape[-1])
    top_weights, columns = F.pad(top_weights, missing), F.pad(columns, missing)
    top_memories, top_segments = (
        torch.where(top_weights == 0, -1, table[columns]) for table in _places(lengths, weights.device)
    )
    return RelationSummary(shares, top_weights, top_memories, top_segments)


def _places(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the memory index and the segment index of each column, int64 (M + 1,) each.

    The extra last entry makes index 0 valid if M = 0.
    """
    lengths = [*lengths, 1]
    memories = [torch.full((length,), index, device=device) for index, length in enumerate(lengths)]
    segments = [torch.arange(length, device=device) for length in lengths]
    return torch.cat(memories), torch.cat(segments)
