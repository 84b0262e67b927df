"""
Export to ONNX, and run it with onnxruntime
===========================================

:func:`torch.onnx.export` turns a layer, or a model that has layers in it, into an ONNX file. Batch and lengths stay
open, masks are inputs like any other, and onnxruntime, which needs no PyTorch, gives the same outputs. The guide needs
the extra ``onnx``, and torch 2.7 or newer: the exporter of 2.6 fixes sizes that are to stay open.
"""

# sphinx_gallery_thumbnail_path = "images/guides/export_onnx.svg"
import logging
import tempfile
import textwrap
import warnings
from collections import Counter
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim

from crossmodal_attn import CMRA, AVInteraction, padding_mask

torch.manual_seed(0)
# torch's exporter uses what torch deprecates, and logs that it skips the operators of torchvision where that is absent.
warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)

# %%
# A layer with padding masks
# --------------------------
# Video of ten seconds and audio of 25 frames. The exporter follows one call, so give it inputs like the real ones,
# masks included: an argument that is not given has no place in the graph. Call ``eval()`` first, and let every size
# that shall stay open be at least 2: a 1 may be taken for fixed, without a warning.

layer = CMRA(64, num_heads=4, context_dim=32).eval()


def make_batch(video_lengths: list[int], audio_lengths: list[int]) -> dict[str, Tensor]:
    """Features with NaN at padding, and their masks."""
    video_padding, audio_padding = padding_mask(video_lengths), padding_mask(audio_lengths)
    return {
        "query": torch.randn(*video_padding.shape, 64).masked_fill(video_padding[..., None], torch.nan),
        "context": torch.randn(*audio_padding.shape, 32).masked_fill(audio_padding[..., None], torch.nan),
        "query_padding_mask": video_padding,
        "context_padding_mask": audio_padding,
    }


# %%
# ``dynamic_shapes`` says which axes stay open. An axis is named where it comes first. Elsewhere it is ``Dim.DYNAMIC``,
# and the exporter sees by itself that, say, the batch of the masks is that of the features.

program = torch.onnx.export(
    layer,
    kwargs=make_batch([10, 6], [25, 15]),
    dynamic_shapes={
        "query": {0: "batch", 1: "time"},
        "context": {0: Dim.DYNAMIC, 1: "frames"},
        "query_padding_mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC},
        "context_padding_mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC},
    },
    output_names=["related"],
    dynamo=True,
    verbose=False,
)
path = Path(tempfile.mkdtemp()) / "cmra.onnx"
program.save(path)

# %%
# At another size
# ---------------
# Inputs have the names of the arguments, and outputs those of ``output_names``.

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
for value in (*session.get_inputs(), *session.get_outputs()):
    print(f"{value.name:22} {value.type:14} {value.shape}")

# %%
# Four videos in place of two, of other lengths, and one of them without any audio.

batch = make_batch([7, 3, 7, 1], [40, 12, 0, 40])
(related,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
with torch.no_grad():
    expected = layer(**batch)
difference = (torch.from_numpy(related) - expected).abs().max().item()
print(f"{tuple(related.shape)}, largest difference {difference:.1e}")
assert difference < 1e-5  # so there is no NaN in it either

# %%
# Masks made inside
# -----------------
# Lengths are shorter to pass on than masks. A model may make its masks of them, if
# :func:`~crossmodal_attn.padding_mask` is told the padded length. What is no tensor, such as ``need_weights``, becomes
# part of the graph: decide at export whether it gives the attention weights.


class Events(nn.Module):
    """A score for every second of video and audio, and the attention weights that led to it."""

    def __init__(self) -> None:
        super().__init__()
        self.interaction = AVInteraction(64, num_heads=4)
        self.head = nn.Linear(64, 1)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, T), zero at padding, and weights (B, heads, T, 2 T)."""
        padding = padding_mask(lengths, max_length=video.shape[1])
        fused, weights = self.interaction(video, audio, padding_mask=padding, need_weights=True)
        return self.head(fused).squeeze(-1).sigmoid().masked_fill(padding, 0), weights


events = Events().eval()
program = torch.onnx.export(
    events,
    (torch.randn(2, 10, 64), torch.randn(2, 10, 64), torch.tensor([10, 6])),
    dynamic_shapes=({0: "batch", 1: "time"}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}),
    output_names=["scores", "weights"],
    dynamo=True,
    verbose=False,
)
program.save(path.with_name("events.onnx"))
session = onnxruntime.InferenceSession(path.with_name("events.onnx"), providers=["CPUExecutionProvider"])

video, audio, lengths = torch.randn(3, 17, 64), torch.randn(3, 17, 64), torch.tensor([17, 9, 1])
inputs = {"video": video.numpy(), "audio": audio.numpy(), "lengths": lengths.numpy()}
scores, weights = session.run(["scores", "weights"], inputs)
with torch.no_grad():
    expected_scores, expected_weights = events(video, audio, lengths)
print(f"scores  {scores.shape}, largest difference {abs(scores - expected_scores.numpy()).max():.1e}")
print(f"weights {weights.shape}, largest difference {abs(weights - expected_weights.numpy()).max():.1e}")
assert abs(scores - expected_scores.numpy()).max() < 1e-5

# %%
# What is in the file
# -------------------
# Operators of the ONNX standard only, so any runtime that has this opset can run it. The layer's checks of its
# arguments are not in the graph: a mask of another length than its features fails somewhere inside.

operators = Counter(node.op_type for node in program.model.graph)
print("opset", program.model.opset_imports[""])
print(textwrap.fill(", ".join(f"{count} {name}" for name, count in operators.most_common()), 100))

# %%
# ``opset_version`` asks for another opset. Stay below 23 for onnxruntime: from there on the exporter writes attention
# as one operator of the standard, ``Attention``, which onnxruntime 1.32 does not run with a padding mask.
#
# All layers are exported in the same way, and so is the whole CMRAN of the examples, with its ``padding_mask``.
