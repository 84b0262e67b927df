"""Every layer, and the whole of CMRAN, as ONNX: onnxruntime gives their outputs at other sizes, masks included."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from crossmodal_attn import AGSCA, CMRA, AVInteraction, CrossModalRelation, RelationAware, padding_mask
from oracles import fill_parameters, make_cmran

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    # The exporter's own use of what torch deprecates.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # It says so of any axis that two arguments share, and where an argument is no tensor it names no axis.
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
    pytest.mark.filterwarnings("ignore:# ONNX model has different number of inputs:UserWarning"),
]

EXPORTED = {"batch": 2, "time": 5, "other": 7, "third": 11, "height": 3, "width": 13}
"""The sizes at export; no two are one, lest the exporter take them for one."""

OTHERS = {
    "smaller": {"batch": 3, "time": 2, "other": 5, "third": 1, "height": 2, "width": 5},
    "larger": {"batch": 5, "time": 17, "other": 11, "third": 13, "height": 7, "width": 3},
    "one of each": dict.fromkeys(EXPORTED, 1),
}


class Export(NamedTuple):
    """A layer, and the axes of each of its arguments: numbers are widths, names are dynamic, sums of names too."""

    build: Callable[[], nn.Module]
    axes: dict[str, Any]
    options: dict[str, Any] = {}  # noqa: RUF012
    additive: bool = False
    """Whether the attention mask is in floating point."""


PADDINGS = {"query_padding_mask": "batch time", "context_padding_mask": "batch other"}
EXPORTS = {
    "one-context": Export(
        lambda: CMRA(39, 3),
        {
            "query": "batch time 39",
            "context": "batch other 39",
            **PADDINGS,
            "attn_mask": "batch+batch+batch time other+time",
        },
    ),
    "two-contexts": Export(
        lambda: CMRA(39, 3, context_dim=17),
        {
            "query": "batch time 39",
            "context": ["batch other 17", "batch third 17"],
            "query_padding_mask": "batch time",
            "context_padding_mask": ["batch other", "batch third"],
            "attn_mask": "batch time other+third+time",
        },
        {"need_weights": True},
        additive=True,
    ),
    "co-attention": Export(
        lambda: CMRA(39, 3, context_dim=17, include_query=False),
        {"query": "batch time 39", "context": "batch other 17", "context_padding_mask": "batch other"},
        {"need_weights": True},
    ),
    "cross-relation": Export(
        lambda: CrossModalRelation(39, 3, 29),
        {"query": "batch time 39", "context": "batch other 39", **PADDINGS, "attn_mask": "time other+time"},
        additive=True,
    ),
    "relation-aware": Export(
        lambda: RelationAware(19, 17, 39, 3, 1, 29),
        {"query": "batch time 19", "context": "batch other 17", **PADDINGS},
    ),
    "interaction": Export(
        lambda: AVInteraction(39, 3),
        {"video": "batch time 39", "audio": "batch time 39", "padding_mask": "batch time"},
        {"need_weights": True},
    ),
    "agsca": Export(
        lambda: AGSCA(19, 17, 23),
        {"video": "batch time height width 19", "audio": "batch time 17"},
        {"need_weights": True},
    ),
    "cmran": Export(
        lambda: make_cmran("supervised"),
        {"video": "batch time height width 11", "audio": "batch time 7", "padding_mask": "batch time"},
    ),
}


def draw_inputs(export: Export, sizes: dict[str, int]) -> dict[str, Any]:
    """Draw the arguments: full, short and empty sequences in turn, NaN in the padding, a query that sees nothing."""
    generator = torch.Generator().manual_seed(0)
    padded = {axes for name, own in export.axes.items() if "padding" in name for axes in tree_leaves(own)}

    def shape(axes: str) -> list[int]:
        return [
            int(axis) if axis.isdecimal() else sum(sizes[name] for name in axis.split("+")) for axis in axes.split()
        ]

    def padding(axes: str) -> Tensor:
        batch, length = shape(axes)
        return padding_mask([(length, 1, 0)[b % 3] for b in range(batch)], length)

    def features(axes: str) -> Tensor:
        drawn = torch.randn(shape(axes), generator=generator)
        owner = " ".join(axes.split()[:2])
        if owner in padded:
            drawn[padding(owner)] = torch.nan
        return drawn

    def attention_mask(axes: str) -> Tensor:
        mask = torch.rand(shape(axes), generator=generator) > 0.5
        mask[..., -1, :] = True
        return torch.randn(mask.shape, generator=generator).masked_fill(mask, -torch.inf) if export.additive else mask

    def kind(name: str) -> Callable[[str], Tensor]:
        return attention_mask if name == "attn_mask" else padding if "padding" in name else features

    return {name: tree_map(kind(name), axes) for name, axes in export.axes.items()}


def dynamic_shapes(export: Export) -> dict[str, Any]:
    """Give every axis that has a name to the exporter, under that name."""
    dynamic = {
        name: tree_map(lambda axes: {i: axis for i, axis in enumerate(axes.split()) if not axis.isdecimal()}, own)
        for name, own in export.axes.items()
    }
    return {**dynamic, **dict.fromkeys(export.options)}


class Exported(NamedTuple):
    """A layer, and what became of it."""

    export: Export
    layer: nn.Module
    model: Any
    session: Any


@pytest.fixture(scope="module", params=EXPORTS)
def exported(request: pytest.FixtureRequest) -> Exported:
    """Every layer, exported once."""
    export = EXPORTS[request.param]
    layer = fill_parameters(export.build()).float().eval()
    program = torch.onnx.export(
        layer,
        kwargs={**draw_inputs(export, EXPORTED), **export.options},
        dynamic_shapes=dynamic_shapes(export),
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return Exported(export, layer, model, session)


def run(session: Any, inputs: Any) -> list[Tensor]:
    """Run the tensors through onnxruntime, in the order of the arguments."""
    feeds = zip(session.get_inputs(), tree_leaves(inputs), strict=True)
    return [torch.from_numpy(array) for array in session.run(None, {put.name: own.numpy() for put, own in feeds})]


@pytest.mark.parametrize("sizes", OTHERS.values(), ids=OTHERS)
def test_onnxruntime_gives_the_output_at_other_sizes(exported, assert_close, sizes):
    """The maps too, where they are asked for; whatever the padding holds, and where a query may attend to nothing."""
    inputs = draw_inputs(exported.export, sizes)
    with torch.no_grad():
        expected = tree_leaves(exported.layer(**inputs, **exported.export.options))
    assert all(output.isfinite().all() for output in expected)
    assert_close(run(exported.session, inputs), expected)


def test_arguments_keep_their_names_and_axes(exported):
    """In the order of the arguments; every axis that was named is dynamic, every width is fixed."""
    names = [
        name if isinstance(axes, str) else f"{name}_{index}"
        for name, axes in exported.export.axes.items()
        for index in range(len(tree_leaves(axes)))
    ]
    assert [put.name for put in exported.session.get_inputs()] == names
    for put, axes in zip(exported.session.get_inputs(), tree_leaves(exported.export.axes), strict=True):
        assert [isinstance(size, str) for size in put.shape] == [not axis.isdecimal() for axis in axes.split()]


def test_graph_is_of_standard_operators(exported):
    """Of no runtime's own, so that any runtime has them; and the graph is well formed."""
    onnx.checker.check_model(exported.model, full_check=True)
    assert {node.domain for node in exported.model.graph.node} == {""}


class FromLengths(nn.Module):
    """A layer that makes its padding masks inside, of lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, query: Tensor, context: Tensor, lengths: Tensor) -> Tensor:
        masks = {
            "query_padding_mask": padding_mask(lengths, query.shape[1]),
            "context_padding_mask": padding_mask(lengths, context.shape[1]),
        }
        return self.layer(query, context, **masks)


def test_padding_masks_are_made_inside(assert_close, tmp_path):
    """Of lengths that are an input; through a file, whose weights lie beside it."""
    module = FromLengths(fill_parameters(CMRA(39, 3, context_dim=17))).eval()
    inputs = torch.randn(2, 5, 39), torch.randn(2, 7, 17), torch.tensor([3, 5])
    path = tmp_path / "model.onnx"
    shapes = ({0: "batch", 1: "time"}, {0: "batch", 1: "other"}, {0: "batch"})
    torch.onnx.export(module, inputs, path, dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    others = torch.randn(3, 11, 39), torch.randn(3, 2, 17), torch.tensor([1, 0, 11])
    with torch.no_grad():
        assert_close(run(session, others), [module(*others)])
