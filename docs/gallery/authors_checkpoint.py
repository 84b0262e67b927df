"""
Load the authors' checkpoint
============================

``CMRAN``, the network in ``examples/``, can load checkpoints of the authors' code, ``.pth.tar``. It then gives the same
outputs. No code in the file is executed: a file that contains anything but tensors, numbers and text raises an error.
Run this guide from the root of a clone, with the extra ``examples`` installed: ``PYTHONPATH=examples:. python
docs/gallery/authors_checkpoint.py``.
"""

# sphinx_gallery_thumbnail_path = "images/guides/authors_checkpoint.svg"
import tempfile
from pathlib import Path

import torch

from ave.data.dataset import AVE_CATEGORIES
from ave.networks.authors_weights import load_official_state_dict, read_official
from ave.networks.cmran import CMRAN
from benchmarks.published import PublishedCMRAN

torch.manual_seed(0)

# %%
# A checkpoint file
# -----------------
# To avoid a download, this guide makes a file from the network as published, which is part of the benchmarks. Its
# parameters have the names and shapes of the authors' code, including layers that are never used. Replace the path with
# that of a real checkpoint.

published = PublishedCMRAN().eval()
path = Path(tempfile.mkdtemp()) / "checkpoint.pth.tar"
torch.save({"state_dict": published.state_dict(), "epoch": 72}, path)
print(f"{len(published.state_dict())} tensors, {sum(p.numel() for p in published.parameters()):,} numbers")
print(*list(published.state_dict())[:4], "...", sep="\n")

# %%
# Load it
# -------
# The setting follows from the category head: 28 rows mean supervised, and 29 rows, with background, mean weakly
# supervised. The widths follow from the shapes.

model = read_official(path, AVE_CATEGORIES)
print(model.setting, "-", len(model.categories), "categories:", ", ".join(model.categories[:3]), "...")
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, all of them used")

# %%
# The same outputs
# ----------------

video, audio = torch.rand(2, 10, 7, 7, 512), torch.rand(2, 10, 128)
with torch.no_grad():
    theirs, ours = published(video, audio), model(video, audio)
for name in theirs._fields:
    print(f"{name:16} largest difference {(getattr(theirs, name) - getattr(ours, name)).abs().max().item():.1e}")

# %%
# In float64, the precision of the authors' training, only rounding errors remain.

with torch.no_grad():
    theirs, ours = published.double()(video.double(), audio.double()), model.double()(video.double(), audio.double())
difference = (theirs.event - ours.event).abs().max().item()
print(f"largest difference {difference:.1e}")
assert difference < 1e-10

# %%
# Error messages
# --------------
# All names and shapes are checked before any weight is changed. The error lists all that do not fit.

state_dict = dict(published.float().state_dict())
state_dict.pop("v_fc.bias")
state_dict["something.else"] = torch.zeros(1)
try:
    load_official_state_dict(CMRAN(), state_dict)
except ValueError as error:
    print(error)

# %%
# Next steps
# ----------
# Save the network as safetensors, a format that cannot contain code:

model.float().save_pretrained(path.with_name("cmran"))
again = CMRAN.from_pretrained(path.with_name("cmran"))
print(sorted(file.name for file in path.with_name("cmran").iterdir()))

# %%
# On the command line, use ``--official`` in place of ``--checkpoint``:
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py evaluate --data path/to/AVE --official path/to/checkpoint.pth.tar
#    python examples/ave_cmran.py predict --data path/to/AVE --official path/to/checkpoint.pth.tar --split test
