"""
Train on AVE, step by step
==========================

``examples/ave_cmran.py train`` does all of this in one command. Here it is taken apart: the set, the network, one step,
an epoch, an accuracy, and what the network then says of a video. It runs on an embedded set in the shape of AVE, so
that nothing has to be downloaded; and from the root of a clone, with the extra ``examples`` installed:
``PYTHONPATH=examples python docs/gallery/train_on_ave.py``.
"""

import matplotlib.pyplot as plt
import torch
from accelerate import Accelerator

from ave.data.batches import evaluation_loader, training_loader
from ave.data.dataset import AVEData
from ave.data.procedural import make_procedural_set
from ave.networks.cmran import CMRAN
from ave.predict import find_events
from ave.results.metrics import background_accuracy, segment_accuracy

torch.manual_seed(0)

# %%
# The set
# -------
# The procedural set has the shapes of the AVE release, and its event lengths: 10 seconds of video, each with a map of 7
# x 7 x 512 features and 128 of audio, and a label of 28 categories and background. It is made so that neither sight nor
# hearing is enough. **It is not AVE**: figures on it say nothing about figures on AVE.

data: AVEData = make_procedural_set(num_train=256, num_val=64, num_test=64)
print("visual", tuple(data.visual.shape), " audio", tuple(data.audio.shape), " labels", tuple(data.labels.shape))
print({split: len(rows) for split, rows in data.splits.items()})

# %%
# For the real one, put the files of the release into a directory, and say
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py check --data path/to/AVE
#
# which tells in one table what is there, and what is missing or wrong. In Python,
# ``ave.data.opening.read_set(directory)`` gives the same kind of object as above.
#
# The network
# -----------
# :class:`~crossmodal_attn.AGSCA`, two :class:`~crossmodal_attn.RelationAware`, one
# :class:`~crossmodal_attn.AVInteraction`, and two heads.

model = CMRAN(categories=data.categories)
for name, child in model.named_children():
    print(f"{name:26} {type(child).__name__:16} {sum(p.numel() for p in child.parameters()):>10,} parameters")

# %%
# One step
# --------
# Batches come in float32, on the accelerator's device. The loss is cross-entropy of the video's category plus binary
# cross-entropy of the event in every second.

accelerator = Accelerator(cpu=True)
loader = training_loader(data, "supervised", accelerator, batch_size=32, seed=0)
video, audio, labels, *_ = next(iter(loader))
logits = model(video, audio)
print({name: tuple(part.shape) for name, part in logits._asdict().items()})
print(f"loss before training: {model.loss(logits, labels).item():.2f}")

# %%
# A few epochs
# ------------
# Adam at 5e-4, gradients clipped at a norm of 0.1, as the authors' code does. Each epoch has an order of its own. These
# are only the first few epochs, on few videos: ``make demo`` goes through 448 videos eleven times, and gets twice as
# many seconds right.

recipe = CMRAN.recipes["supervised"]
optimizer = recipe.optimizer(model.parameters(), lr=recipe.lr)
val = evaluation_loader(data, "val", accelerator)
history = []
for epoch in range(1, 6):
    model.train()
    loader.shares.epoch = epoch
    losses = []
    for video, audio, labels, *_ in loader:
        loss = model.loss(model(video, audio), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    history.append((sum(losses) / len(losses), segment_accuracy(model, val)))
    print(f"epoch {epoch}   loss {history[-1][0]:.2f}   val {history[-1][1]:.1%}")
print(f"baseline, predicting background everywhere: {background_accuracy(data, 'val'):.1%}")

# %%
figure, left = plt.subplots(figsize=(6, 2.8), layout="constrained")
left.plot(range(1, len(history) + 1), [loss for loss, _ in history], color="#1f5f99")
left.set(xlabel="epoch", ylabel="loss (blue)", xticks=range(1, len(history) + 1))
right = left.twinx()
right.plot(range(1, len(history) + 1), [accuracy for _, accuracy in history], color="#b3530a")
right.set(ylabel="val accuracy (orange)", ylim=(0, 1))

# %%
# What it says of a video
# -----------------------
# ``decide`` labels every second, ``find_events`` puts runs of seconds together.

model.eval()
video, audio, labels, *_ = next(iter(evaluation_loader(data, "test", accelerator)))
with torch.no_grad():
    logits = model(video, audio)
background = len(data.categories)
decision = model.decide(logits)
print("said:", decision.labels[0].tolist())
print("true:", labels.argmax(-1)[0].tolist())
for event in find_events(decision, background=background)[0]:
    print(f"{event.start}-{event.end} s: {data.categories[event.category]}, score {event.score:.2f}")

# %%
# From here
# ---------
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py train --data path/to/AVE --seeds 0 1 2     # mean and spread of three trainings
#    python examples/ave_cmran.py train --data path/to/AVE --setting weak    # labels of whole videos only
#    python examples/ave_cmran.py train --resume runs/...                    # go on with one that was stopped
#    python examples/ave_cmran.py evaluate --data path/to/AVE --checkpoint runs/...
#    python examples/ave_cmran.py predict --help                         # events of your own videos, as CSV and JSON
