"""
Export to ONNX, and run it with onnxruntime
===========================================

:func:`torch.onnx.export` exports a layer, or a model that contains layers, to an ONNX file. Batch size and lengths are
dynamic, and masks are inputs. onnxruntime, which does not need PyTorch, gives the same outputs. This guide needs the
extra ``onnx`` and torch 2.7 or newer, since the exporter of 2.6 does not keep all sizes dynamic.
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
# The exporter uses deprecated functions of torch, and logs a message if torchvision is missing.
warnings.filterwarnings("ignore", "`isinstance.treespec, LeafSpec.` is deprecated", FutureWarning)
logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)

# %%
# A layer with padding masks
# --------------------------
# The video has ten seconds, the audio 25 frames. The exporter traces one call, so give it all inputs that the real
# calls have, including masks: an argument that is not given is not part of the graph. Call ``eval()`` first. Use at
# least 2 for each dynamic size, since a size of 1 may become fixed without a warning.

layer = CMRA(64, num_heads=4, context_dim=32).eval()


def make_batch(video_lengths: list[int], audio_lengths: list[int]) -> dict[str, Tensor]:
    """Return features with NaN at padding, and their padding masks."""
    video_padding, audio_padding = padding_mask(video_lengths), padding_mask(audio_lengths)
    return {
        "query": torch.randn(*video_padding.shape, 64).masked_fill(video_padding[..., None], torch.nan),
        "context": torch.randn(*audio_padding.shape, 32).masked_fill(audio_padding[..., None], torch.nan),
        "query_padding_mask": video_padding,
        "context_padding_mask": audio_padding,
    }


# %%
# ``dynamic_shapes`` lists the dynamic axes. Give an axis a name where it occurs first, and use ``Dim.DYNAMIC``
# elsewhere. The exporter finds out which sizes are equal, such as the batch size of features and masks.

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
# Run it at another size
# ----------------------
# The inputs have the names of the arguments, and the outputs have the names in ``output_names``.

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
for value in (*session.get_inputs(), *session.get_outputs()):
    print(f"{value.name:22} {value.type:14} {value.shape}")

# %%
# Four videos instead of two, with other lengths. One of them has no audio.

batch = make_batch([7, 3, 7, 1], [40, 12, 0, 40])
(related,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
with torch.no_grad():
    expected = layer(**batch)
difference = (torch.from_numpy(related) - expected).abs().max().item()
print(f"{tuple(related.shape)}, largest difference {difference:.1e}")
assert difference < 1e-5  # and no NaN

# %%
# Lengths in place of masks
# -------------------------
# A model can take lengths as its input and make the masks inside, if :func:`~crossmodal_attn.padding_mask` gets the
# padded length. Arguments that are not tensors, such as ``need_weights``, are fixed at export: decide then whether the
# program returns the attention weights.


class Events(nn.Module):
    """Return a score for each second of video and audio, and the attention weights."""

    def __init__(self) -> None:
        super().__init__()
        self.interaction = AVInteraction(64, num_heads=4)
        self.head = nn.Linear(64, 1)

    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores (B, T), zero at padding, and the weights (B, heads, T, 2 T)."""
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
# The file contains only standard ONNX operators, so any runtime with this opset can run it. The argument checks of the
# layer are not part of the graph: a mask of a wrong length fails with an error of the runtime.

operators = Counter(node.op_type for node in program.model.graph)
print("opset", program.model.opset_imports[""])
print(textwrap.fill(", ".join(f"{count} {name}" for name, count in operators.most_common()), 100))

# %%
# ``opset_version`` selects another opset. Use one below 23 for onnxruntime: from 23 on, the exporter writes attention
# as the standard operator ``Attention``, which onnxruntime 1.32 cannot run with a padding mask.
#
# All layers are exported in the same way, and so is the whole CMRAN of the examples, with its ``padding_mask``.
