"""
Load the authors' checkpoint
============================

Weights that the authors' released code saved, ``.pth.tar``, load into the network of the example, and give the same
outputs. Nothing in the file is run: a file that holds anything but tensors, numbers and text is refused. This runs from
the root of a clone, with the extra ``examples`` installed:
``PYTHONPATH=examples:. python docs/gallery/authors_checkpoint.py``.
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
# A file to read
# --------------
# So that this page needs no download, the file comes from the network as its authors built it, which the benchmarks
# keep to measure against: the names and shapes of its parameters are those of the released code, templates and layers
# that are never used included. Put the path of a real checkpoint in its place.

published = PublishedCMRAN().eval()
path = Path(tempfile.mkdtemp()) / "checkpoint.pth.tar"
torch.save({"state_dict": published.state_dict(), "epoch": 72}, path)
print(f"{len(published.state_dict())} tensors, {sum(p.numel() for p in published.parameters()):,} numbers")
print(*list(published.state_dict())[:4], "...", sep="\n")

# %%
# Reading it
# ----------
# The setting follows from the category head: 28 rows are supervised, 29, with background, are weakly supervised. So do
# the widths, from the shapes.

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
# In float64, in which the authors train, only rounding is left.

with torch.no_grad():
    theirs, ours = published.double()(video.double(), audio.double()), model.double()(video.double(), audio.double())
difference = (theirs.event_logits - ours.event_logits).abs().max().item()
print(f"largest difference {difference:.1e}")
assert difference < 1e-10

# %%
# When it does not fit
# --------------------
# All names and shapes are checked before anything is filled, and everything that is wrong is said at once.

state_dict = dict(published.float().state_dict())
state_dict.pop("v_fc.bias")
state_dict["something.else"] = torch.zeros(1)
try:
    load_official_state_dict(CMRAN(), state_dict)
except ValueError as error:
    print(error)

# %%
# From here
# ---------
# Keep it as safetensors, which needs no code of anyone's to be read:

model.float().save_pretrained(path.with_name("cmran"))
again = CMRAN.from_pretrained(path.with_name("cmran"))
print(sorted(file.name for file in path.with_name("cmran").iterdir()))

# %%
# On the command line, ``--official`` takes the file wherever a checkpoint can be given:
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py evaluate --data path/to/AVE --official path/to/checkpoint.pth.tar
#    python examples/ave_cmran.py predict --official path/to/checkpoint.pth.tar --help
