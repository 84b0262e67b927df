"""In onnxruntime, every layer and CMRAN give the same outputs at other sizes, with masks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from crossmodal_attn import AGSCA, CMRA, CrossModalRelation, RelationAware, RotaryTime, padding_mask
from oracles import fill_parameters, make_cmran

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 fixes sizes in the graph that are to stay open"),
    # The exporter's own use of what torch deprecates.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
]


class Sizes(NamedTuple):
    """The sizes that may differ between calls: batch, lengths of the query and of two contexts, and space."""

    batch: int
    time: int
    other: int
    third: int
    height: int
    width: int


EXPORTED = Sizes(batch=2, time=5, other=7, third=11, height=3, width=13)
"""All differ, so that the exporter cannot take two sizes as equal."""

OTHERS = {
    "smaller": Sizes(batch=3, time=2, other=5, third=1, height=2, width=5),
    "larger": Sizes(batch=5, time=17, other=11, third=13, height=7, width=3),
    "one of each": Sizes(1, 1, 1, 1, 1, 1),
}


def draw_padding(batch: int, time: int) -> Tensor:
    """Return the padding mask of full, short and empty sequences in turn."""
    return padding_mask([(time, 1, 0)[b % 3] for b in range(batch)], time)


def draw(*shape: int, padding: Tensor | None = None) -> Tensor:
    """Return features with NaN at padding."""
    features = torch.randn(shape)
    if padding is not None:
        features[padding] = torch.nan
    return features


def draw_mask(*shape: int) -> Tensor:
    """Return an attention mask whose last query may attend to nothing."""
    mask = torch.rand(shape) > 0.5
    mask[..., -1, :] = True
    return mask


class FromLengths(nn.Module):
    """A layer with padding masks made inside from lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, query: Tensor, context: Tensor, lengths: Tensor, attn_mask: Tensor) -> Tensor:
        padding = padding_mask(lengths, context.shape[1])
        return self.layer(query, context, context_padding_mask=padding, attn_mask=attn_mask)


def inputs_from_lengths(sizes: Sizes) -> dict[str, Any]:
    """Return inputs with one bool attention mask for all videos."""
    batch, time, other, *_ = sizes
    padding = draw_padding(batch, other)
    return {
        "query": draw(batch, time, 39),
        "context": draw(batch, other, 17, padding=padding),
        "lengths": (~padding).sum(1),
        "attn_mask": draw_mask(time, other + time),
    }


def inputs_two_contexts(sizes: Sizes) -> dict[str, Any]:
    """Return inputs with a float attention mask for each head of each video."""
    batch, time, other, third, *_ = sizes
    padding, paddings = draw_padding(batch, time), [draw_padding(batch, other), draw_padding(batch, third)]
    closed = draw_mask(3 * batch, time, other + third + time)
    return {
        "query": draw(batch, time, 39, padding=padding),
        "context": [draw(*own.shape, 39, padding=own) for own in paddings],
        "query_padding_mask": padding,
        "context_padding_mask": paddings,
        "attn_mask": torch.randn(closed.shape).masked_fill(closed, -torch.inf),
        "need_weights": True,
    }


def inputs_of_widths(sizes: Sizes) -> dict[str, Any]:
    """Return inputs with contexts of two widths, the times of each modality, and a mask for each video."""
    batch, time, other, third, *_ = sizes
    padding = draw_padding(batch, other)
    return {
        "query": draw(batch, time, 39),
        "context": [draw(batch, other, 17, padding=padding), draw(batch, third, 23)],
        "context_padding_mask": [padding, draw_padding(batch, third)],
        "query_times": 40 * torch.rand(time),
        "context_times": [(40 * torch.rand(batch, other)).masked_fill(padding, torch.nan), torch.arange(third)],
        "attn_mask": draw_mask(batch, time, other + third),
    }


def inputs_relation_aware(sizes: Sizes) -> dict[str, Any]:
    """Return inputs for two contexts, with masks of every kind."""
    batch, time, other, third, *_ = sizes
    padding, paddings = draw_padding(batch, time), [draw_padding(batch, other), draw_padding(batch, third)]
    return {
        "query": draw(batch, time, 19, padding=padding),
        "context": [draw(*own.shape, width, padding=own) for own, width in zip(paddings, (17, 23), strict=True)],
        "query_padding_mask": padding,
        "context_padding_mask": paddings,
        "attn_mask": draw_mask(time, other + third + time),
        "context_attn_mask": [draw_mask(other, other), torch.randn(batch, third, third)],
    }


def inputs_agsca(sizes: Sizes) -> dict[str, Any]:
    batch, time, *_, height, width = sizes
    return {"video": draw(batch, time, height, width, 19), "audio": draw(batch, time, 17), "need_weights": True}


def inputs_cmran(sizes: Sizes) -> dict[str, Any]:
    batch, time, *_, height, width = sizes
    padding = draw_padding(batch, time)
    return {
        "video": draw(batch, time, height, width, 11, padding=padding),
        "audio": draw(batch, time, 7, padding=padding),
        "padding_mask": padding,
    }


class Export(NamedTuple):
    """A layer, its inputs for given sizes, and need_weights, which is fixed at export."""

    build: Callable[[], nn.Module]
    inputs: Callable[[Sizes], dict[str, Any]]


ROTARY = RotaryTime()

EXPORTS = {
    "from-lengths": Export(lambda: FromLengths(CMRA(39, 3, context_dim=17)), inputs_from_lengths),
    "two-contexts": Export(lambda: CrossModalRelation(39, 3, 29, rotary=ROTARY), inputs_two_contexts),
    "widths": Export(
        lambda: CrossModalRelation(
            39, 3, 29, context_dim=[17, 23], include_query=False, rotary=ROTARY, norm_first=True, activation="gelu"
        ),
        inputs_of_widths,
    ),
    "relation-aware": Export(
        lambda: RelationAware(19, [17, 23], 39, 3, 1, 29, own_projections=True), inputs_relation_aware
    ),
    "agsca": Export(lambda: AGSCA(19, 17, 23), inputs_agsca),
    "cmran": Export(lambda: make_cmran("supervised", num_layers=0), inputs_cmran),
}
"""Export is slow, so InternalTemporalRelation is exported only as part of RelationAware, and AVInteraction of CMRAN."""


class Exported(NamedTuple):
    """A layer and its exported file."""

    layer: nn.Module
    inputs: Callable[[Sizes], dict[str, Any]]
    dynamic: dict[str, Any]
    path: Path
    session: Any


@pytest.fixture(scope="module", params=EXPORTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export each layer once, to a file with external weights."""
    build, inputs = EXPORTS[request.param]
    layer = fill_parameters(build()).float().eval()
    dynamic = tree_map(dynamic_axes, inputs(EXPORTED), inputs(OTHERS["smaller"]))
    path = tmp_path_factory.mktemp("onnx") / f"{request.param}.onnx"
    torch.onnx.export(layer, f=path, kwargs=inputs(EXPORTED), dynamic_shapes=dynamic, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return Exported(layer, inputs, dynamic, path, session)


def dynamic_axes(value: Any, other: Any) -> Any:
    """Return the dynamic axes of a tensor: those whose size differs between two inputs."""
    if not isinstance(value, Tensor):
        return None
    return {axis: torch.export.Dim.DYNAMIC for axis in range(value.dim()) if value.shape[axis] != other.shape[axis]}


@pytest.mark.parametrize("sizes", OTHERS.values(), ids=OTHERS)
def test_onnxruntime_gives_the_output_at_other_sizes(exported, assert_close, sizes):
    """Outputs and requested maps are equal, with NaN at padding and queries that may attend to nothing."""
    inputs = exported.inputs(sizes)
    with torch.no_grad():
        expected = tree_leaves(exported.layer(**inputs))
    assert all(output.isfinite().all() for output in expected)
    tensors = [value.numpy() for value in tree_leaves(inputs) if isinstance(value, Tensor)]
    names = [put.name for put in exported.session.get_inputs()]
    outputs = exported.session.run(None, dict(zip(names, tensors, strict=True)))
    assert_close([torch.from_numpy(output) for output in outputs], expected)


def test_arguments_keep_their_names_and_axes(exported):
    """Inputs keep their names and order; batch, lengths and space are dynamic, and widths are fixed."""
    expected = []
    for name, axes in exported.dynamic.items():
        if isinstance(axes, list):
            expected += [(f"{name}_{index}", list(own)) for index, own in enumerate(axes)]
        elif axes is not None:
            expected.append((name, list(axes)))
    came = exported.session.get_inputs()
    assert [(put.name, [i for i, size in enumerate(put.shape) if isinstance(size, str)]) for put in came] == expected


def test_graph_is_of_standard_operators(exported):
    """The graph is valid and has only standard operators, so any runtime can run it."""
    onnx.checker.check_model(exported.path, full_check=True)
    assert {node.domain for node in onnx.load(exported.path).graph.node} == {""}
