"""Replace the ``nn.MultiheadAttention`` layers of a model by CMRA layers with the same ``forward`` signature, and back.

Axes: B batch, H heads, T query length, M memory length.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import Self

from crossmodal_attn._checks import check_features, check_mask, check_match, check_tensor
from crossmodal_attn.cmra import CMRA
from crossmodal_attn.masks import check_attention_mask, join_masks
from crossmodal_attn.windows import RelationWindow

__all__ = ["ReplacementReport", "replace_multihead_attention"]

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
)
"""The attributes in which a module keeps the hooks around its calls."""


def replace_multihead_attention(model: nn.Module) -> "ReplacementReport":
    """Replace the ``nn.MultiheadAttention`` layers of a model by :class:`CMRA` layers that are called in the same way.

    The rest of ``model`` does not change. The new layers take the arguments of the old ones: ``key_padding_mask`` (bool
    or floating point), ``attn_mask``, ``need_weights``, ``average_attn_weights`` and ``is_causal``, batch first or not,
    with a batch or without. Outputs and gradients are the same. In each call, the key and the value must be the same
    tensor. So :class:`torch.nn.TransformerEncoder`, :class:`torch.nn.TransformerDecoder`, :class:`torch.nn.Transformer`
    and other models can use CMRA. These differences remain:

    - The projections are the modules ``q_proj``, ``kv_proj`` and ``out_proj``, which hooks and adapters can wrap. So
      the names in the state dict change. Load checkpoints of the original model before the replacement. Create the
      optimizer, and use DDP, FSDP and :func:`torch.compile`, after it.
    - :func:`record_attention` records the attention weights. With ``need_weights=True``, the output still comes from
      the fused kernel, and the returned weights are those before dropout.
    - A query that may attend to nothing gets zero attention, never NaN. NaN or Inf in the padded steps of keys never
      reaches other steps.
    - ``attn_mask`` is always applied. ``is_causal=True`` needs it, as in torch, and has no effect of its own.
    - In evaluation without gradients, torch's encoder has a fast path that never calls its attention layers. The new
      layers disable it. So the encoder may be slower in evaluation, padded steps of its output are not zero, and nested
      tensors raise an error. If you build a :class:`torch.nn.TransformerEncoder` from a replaced layer, set
      ``enable_nested_tensor=False`` to avoid a warning of torch.

    Args:
        model: a module that contains :class:`torch.nn.MultiheadAttention` layers. It is changed in place. A layer that
            is used in two places is replaced by one CMRA in both.

    Returns:
        ReplacementReport: which layers were replaced, which were skipped and why, and ``restore()``.

    Raises:
        TypeError: if ``model`` is not a :class:`torch.nn.Module`.
        ValueError: if ``model`` is itself a :class:`torch.nn.MultiheadAttention`. Later, a replaced layer raises a
            ValueError if it is called with a key and a value that are not the same tensor. The message names the layer.

    Examples:
        >>> model = torch.nn.Transformer(64, 4, 1, 1, dropout=0.0, batch_first=True)
        >>> source, target = torch.randn(2, 12, 64), torch.randn(2, 10, 64)
        >>> before = model(source, target)
        >>> report = replace_multihead_attention(model)
        >>> report.replaced
        ['encoder.layers.0.self_attn', 'decoder.layers.0.self_attn', 'decoder.layers.0.multihead_attn']
        >>> torch.allclose(model(source, target), before, atol=1e-5)
        True
        >>> report.restore()
        >>> type(model.encoder.layers[0].self_attn).__name__
        'MultiheadAttention'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.MultiheadAttention):
        raise ValueError(
            "model must hold the layers to replace, got a MultiheadAttention itself: give the module that holds it, or "
            "use CMRA.from_multihead_attention"
        )
    report = ReplacementReport()
    made: dict[int, MultiheadCMRA] = {}
    uses = _count_uses(model)
    for path, parent, name, attention in _find(model):
        if id(attention) not in made:
            try:
                _check_weights(attention, uses)
                layer = MultiheadCMRA.from_multihead_attention(attention)
            except (TypeError, ValueError) as error:
                report.skipped[path] = str(error)
                continue
            layer.path = path
            made[id(attention)] = layer
        report.replaced.append(path)
        report._places.append((path, parent, name, attention, made[id(attention)]))
    for _, parent, name, attention, layer in report._places:
        _move_hooks(attention, layer)
        parent.register_module(name, layer)
    return report


@dataclass(frozen=True)
class ReplacementReport:
    """Hold the result of :func:`replace_multihead_attention`.

    The report holds the original layers. Delete it when you no longer need to restore them, to free their memory.

    Attributes:
        replaced: the paths of the layers that were replaced, in the order of the model.
        skipped: the path of each other ``nn.MultiheadAttention`` layer, with the reason: the layer has an option that
            CMRA lacks, it has its own ``forward``, or its weights are shared or computed.
    """

    replaced: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    _places: list[tuple[str, nn.Module, str, nn.MultiheadAttention, "MultiheadCMRA"]] = field(
        default_factory=list, init=False, repr=False
    )

    def restore(self) -> None:
        """Put the original layers back, with the current weights, device, dtype and mode of their replacements.

        Their parameters are the original objects. A packed parameter is frozen if all projections in it are frozen. A
        second call does nothing.

        Raises:
            ValueError: if another module is now in the place of a replacement, or a projection is no longer a plain
                :class:`torch.nn.Linear`, for example because of an adapter, or a bias was added or removed. Then
                nothing is changed.
        """
        for path, parent, name, attention, layer in self._places:
            if parent._modules.get(name) is not layer:
                raise ValueError(
                    f"{path} must still be the layer that replace_multihead_attention put there, "
                    f"got {type(parent._modules.get(name)).__name__}: put it back before restore()"
                )
            for projection, module in layer.named_children():
                if type(module) is not nn.Linear:
                    raise ValueError(
                        f"{path}.{projection} must be a plain torch.nn.Linear to be restored, got "
                        f"{type(module).__name__}: merge or remove adapters before restore()"
                    )
                if (module.bias is None) != (attention.in_proj_bias is None):
                    expected = "not have" if attention.in_proj_bias is None else "have"
                    raise ValueError(f"{path}.{projection} must {expected} a bias to be restored, as originally")
        for _, parent, name, attention, layer in self._places:
            layer._write_to(attention)
            _move_hooks(layer, attention)
            parent.register_module(name, attention)
        self._places.clear()


class _Absent:
    """Replace the packed weights, which CMRA does not have, in the attributes that torch's encoder reads.

    :class:`torch.nn.TransformerEncoder` does not use its fast path if a weight has ``__torch_function__``, as this
    object has. Using the object as a tensor raises an error that tells where the weights are.
    """

    _message = (
        "in_proj_weight and in_proj_bias are no tensors in a layer that replace_multihead_attention put here: use "
        "q_proj and kv_proj, or call restore() first"
    )

    @classmethod
    def __torch_function__(cls, *_: object) -> NoReturn:
        raise TypeError(cls._message)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self._message} (there is no {name} here)")


class MultiheadCMRA(CMRA):
    """A CMRA with the ``forward`` of ``nn.MultiheadAttention``. Only :func:`replace_multihead_attention` makes it."""

    path = ""
    """The path of the layer in the model, for error messages."""
    batch_first: bool
    kdim: int

    # torch's encoder reads these. Its layers take the fast path only if _qkv_same_embed_dim is True.
    in_proj_weight: Any = _Absent()
    in_proj_bias: Any = _Absent()
    _qkv_same_embed_dim = False

    @classmethod
    def from_multihead_attention(cls, attention: nn.MultiheadAttention) -> Self:
        """Return a copy of an ``nn.MultiheadAttention``, with its ``batch_first``."""
        layer = super().from_multihead_attention(attention)
        layer.batch_first, layer.kdim = attention.batch_first, attention.kdim
        return layer

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | RelationWindow | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from the query to one memory, which is both key and value.

        Args:
            query: (B, T, embed_dim), (T, B, embed_dim) if not ``batch_first``, or (T, embed_dim).
            key: (B, M, kdim), (M, B, kdim) if not ``batch_first``, or (M, kdim).
            value: the same tensor as ``key``.
            key_padding_mask: (B, M), or (M,) without batch: bool, True = padding, or floating point, added to the
                scores.
            need_weights: whether to return the attention weights too.
            attn_mask: as for :class:`CMRA`, which takes all that :class:`torch.nn.MultiheadAttention` takes.
            average_attn_weights: whether to return the mean of the weights over the heads.
            is_causal: whether ``attn_mask`` is causal. True needs ``attn_mask``, which is applied in either case.

        Returns:
            tuple[Tensor, Tensor | None]: the output, shaped as ``query``, and None or the weights (B, T, M), or with
            ``average_attn_weights=False`` (B, H, T, M), without B if the query has no batch.
        """
        self._check_call(query, key, value, attn_mask, is_causal)
        if key_padding_mask is not None:
            check_tensor("key_padding_mask", key_padding_mask)
        batched = query.dim() == 3
        if not batched:
            query, key = query.unsqueeze(0), key.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key = query.transpose(0, 1), key.transpose(0, 1)
        padding = key_padding_mask
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            padding = key_padding_mask == -torch.inf  # torch's encoder turns bool masks into 0 and -inf
        if padding is not None:
            check_mask("key_padding_mask", padding, key.shape[:2], key)
        if key_padding_mask is not None and key_padding_mask.is_floating_point():
            attn_mask = self._add_to_mask(key_padding_mask, attn_mask, query)
        result = super().forward(
            query, key, context_padding_mask=padding, attn_mask=attn_mask, need_weights=need_weights
        )
        output, weights = result if isinstance(result, tuple) else (result, None)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        # Contiguous like torch's output, since callers may use view() on it.
        return output if self.batch_first else output.transpose(0, 1).contiguous(), weights

    def _check_call(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: object, is_causal: bool) -> None:
        """Check what CMRA does not check, or would report under another argument name."""
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            check_tensor(name, tensor)
            if tensor.is_nested:
                raise TypeError(f"{name} must not be a nested tensor in {self._name()}: pad it, and give a mask")
        if not _is_same(key, value):
            raise ValueError(
                f"value must be the same tensor as key in {self._name()}, since CMRA projects keys and values from one "
                f"memory, got another (shapes {tuple(value.shape)} and {tuple(key.shape)}): undo the replacement with "
                "restore(), then replace only submodules that do not contain this layer"
            )
        if query.dim() not in (2, 3):
            raise ValueError(f"query must have two dimensions, or three with a batch, got {tuple(query.shape)}")
        if key.dim() != query.dim():
            raise ValueError(f"key must have as many dimensions as query, {query.dim()}, got {tuple(key.shape)}")
        check_features("query", query, self.embed_dim, "embed_dim", self, self.q_proj, sequence=False)
        check_features("key", key, self.kdim, "kdim", self, self.kv_proj, sequence=False)
        batch = {0 if self.batch_first else 1: "batch size"} if query.dim() == 3 else {}
        check_match("key", key, batch, "query", query)
        if is_causal and attn_mask is None:
            raise ValueError(
                "attn_mask must be given with is_causal=True, which only says that the mask is causal, got None: use "
                "torch.nn.Transformer.generate_square_subsequent_mask, or relation_mask(length, causal=True)"
            )

    def _name(self) -> str:
        return self.path or type(self).__name__

    def _add_to_mask(
        self, key_padding_mask: Tensor, attn_mask: Tensor | RelationWindow | None, query: Tensor
    ) -> Tensor:
        """Return the sum of a floating-point padding mask (B, M) and an attention mask, (B, 1 or H, 1 or T, M)."""
        added = key_padding_mask[:, None, None]
        if attn_mask is None:
            return added
        if isinstance(attn_mask, RelationWindow):
            raise TypeError(
                "key_padding_mask must be bool (True = padding) where attn_mask is a RelationWindow, got "
                f"{key_padding_mask.dtype}: use key_padding_mask == -torch.inf for one of 0 and -inf"
            )
        check_tensor("attn_mask", attn_mask)
        batch, memory = key_padding_mask.shape
        shape = (batch, self.num_heads, query.shape[1], memory)
        check_attention_mask("attn_mask", attn_mask, shape, query, per_head=False)
        mask: Any = join_masks(attn_mask, [], [], batch, self.num_heads)
        return torch.where(mask, -torch.inf, added) if mask.dtype == torch.bool else added + mask

    def _write_to(self, attention: nn.MultiheadAttention) -> None:
        """Copy weights, device, dtype and mode to ``attention``, the original layer."""
        attention.train(self.training).to(self.q_proj.weight)
        if attention.in_proj_weight is not None:
            _write(attention.in_proj_weight, self.q_proj.weight, self.kv_proj.weight)
        else:
            _write(attention.q_proj_weight, self.q_proj.weight)
            _write(attention.k_proj_weight, self.kv_proj.weight, rows=slice(self.embed_dim))
            _write(attention.v_proj_weight, self.kv_proj.weight, rows=slice(self.embed_dim, None))
        _write(attention.out_proj.weight, self.out_proj.weight)
        if attention.in_proj_bias is not None:
            _write(attention.in_proj_bias, self.q_proj.bias, self.kv_proj.bias)
            _write(attention.out_proj.bias, self.out_proj.bias)


def _find(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.MultiheadAttention]]:
    """Yield the path, the parent module, the name in the parent, and the layer, for each ``nn.MultiheadAttention``."""
    for prefix, parent in model.named_modules():
        for name, child in parent._modules.items():
            if isinstance(child, nn.MultiheadAttention):
                yield f"{prefix}.{name}" if prefix else name, parent, name, child


def _count_uses(model: nn.Module) -> Counter[int]:
    """Return the number of modules that contain each parameter and each module, by ``id``."""
    return Counter(
        id(part)
        for module in model.modules()
        for part in (*module._parameters.values(), *module._modules.values())
        if part is not None
    )


def _check_weights(attention: nn.MultiheadAttention, uses: Counter[int]) -> None:
    """Check that a copy of the weights would give the same outputs and the same training."""
    # This also finds a forward that a library has set on the object, for example to move weights between devices.
    if getattr(attention.forward, "__func__", None) is not nn.MultiheadAttention.forward:
        raise TypeError(
            f"forward must be that of nn.MultiheadAttention, but this {type(attention).__name__} has another"
        )
    projection: nn.Module = attention.out_proj
    if type(projection) not in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise TypeError(f"out_proj must be a plain linear layer, got {type(projection).__name__}")
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias")
    weights = {name: getattr(attention, name) for name in names}
    weights |= {f"out_proj.{name}": getattr(projection, name) for name in ("weight", "bias")}
    for name, weight in weights.items():
        if weight is not None and not isinstance(weight, nn.Parameter):
            raise TypeError(f"{name} must be a parameter, but it is computed, and a copy would not follow its sources")
    for name, part in {**weights, "out_proj": projection}.items():
        if part is not None and uses[id(part)] > 1:
            raise ValueError(
                f"{name} must be in one module only, but it is in {uses[id(part)]}, and a copy would not be tied to it"
            )


def _is_same(key: Tensor, value: Tensor) -> bool:
    """Return whether key and value were the same tensor, possibly before a hook replaced both.

    Backward hooks, also those of FSDP, pass new tensors to a layer. These share their memory and their ``grad_fn``.
    """
    if key is value:
        return True
    if key.grad_fn is not value.grad_fn:
        return False
    if key.grad_fn is None and (key.requires_grad or value.requires_grad):
        return False
    with suppress(RuntimeError):  # on the meta device and under torch.func
        return key.dtype == value.dtype and key.is_set_to(value)
    return False


def _move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Move the forward and backward hooks to another module. Handles that the user has can still remove them."""
    for name in _HOOKS:
        setattr(new, name, getattr(old, name))


def _write(target: Tensor, *sources: Tensor, rows: slice = slice(None)) -> None:
    """Copy rows of parameters into one parameter, and freeze it if all sources are frozen."""
    with torch.no_grad():
        target.copy_(torch.cat([source[rows] for source in sources]))
    target.requires_grad_(any(source.requires_grad for source in sources))
