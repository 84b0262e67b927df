"""
Train on AVE, step by step
==========================

``examples/ave_cmran.py train`` does all of this in one command. This guide shows its parts: the dataset, the network,
one step, a few epochs, the accuracy, and the predictions for a video. It uses an embedded procedural dataset with the
shapes of AVE, so there is nothing to download. Run it from the root of a clone, with the extra ``examples`` installed:
``PYTHONPATH=examples python docs/gallery/train_on_ave.py``.
"""

import matplotlib.pyplot as plt
import torch
from accelerate import Accelerator

from ave.data.batches import evaluation_loader, training_loader
from ave.data.dataset import AVEData
from ave.data.procedural import make_procedural_set
from ave.events import find_events
from ave.networks.cmran import CMRAN
from ave.results.metrics import background_accuracy, segment_accuracy

torch.manual_seed(1)

# %%
# The dataset
# -----------
# The procedural dataset has the shapes and the event lengths of the AVE release. Each video has 10 seconds. Each second
# has a visual map of 7 x 7 x 512, 128 audio features, and a label: one of 28 categories or background. Neither modality
# alone is sufficient to solve it. **It is not AVE**: results on it say nothing about results on AVE.

data: AVEData = make_procedural_set(num_train=88, num_val=16, num_test=16)
print("visual", tuple(data.visual.shape), " audio", tuple(data.audio.shape), " labels", tuple(data.labels.shape))
print({split: len(rows) for split, rows in data.splits.items()})

# %%
# For AVE itself, put the files of the release into a directory, and check them:
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py check --data path/to/AVE
#
# This prints a table of the files, and reports what is missing or wrong. In Python,
# ``ave.data.opening.read_set(directory)`` returns the same kind of object as above.
#
# The network
# -----------
# The network consists of an :class:`~crossmodal_attn.AGSCA`, two :class:`~crossmodal_attn.RelationAware`, an
# :class:`~crossmodal_attn.AVInteraction`, and two heads.

model = CMRAN(categories=data.categories)
for name, child in model.named_children():
    print(f"{name:26} {type(child).__name__:16} {sum(p.numel() for p in child.parameters()):>10,} parameters")

# %%
# One step
# --------
# Batches are float32, on the device of the accelerator. The loss is the cross-entropy of the video's category plus the
# binary cross-entropy of the event in each second.

accelerator = Accelerator(cpu=True)
loader = training_loader(data, "supervised", accelerator, batch_size=8, seed=0)
video, audio, labels, *_ = next(iter(loader))
logits = model(video, audio)
print({name: tuple(part.shape) for name, part in logits._asdict().items()})
print(f"loss before training: {model.loss(logits, labels).item():.2f}")

# %%
# A few epochs
# ------------
# As in the authors' code, Adam has a learning rate of 5e-4, and gradients are clipped at a norm of 0.1. Each epoch
# shuffles the videos in a different order. These are only a few epochs on few videos. ``make demo`` trains for eleven
# epochs on 448 videos, with batches of 32, and its accuracy is twice as high.

recipe = CMRAN.recipes["supervised"]
optimizer = recipe.optimizer(model.parameters(), lr=recipe.lr)
val = evaluation_loader(data, "val", accelerator)
history = []
for epoch in range(1, 4):
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
# Predictions for a video
# -----------------------
# ``decide`` predicts a label for each second, and ``find_events`` joins consecutive seconds into events. The video
# shown is one with a partial event: an event that starts later or ends earlier than the video.

model.eval()
video, audio, labels, *_ = next(iter(evaluation_loader(data, "test", accelerator)))
with torch.no_grad():
    logits = model(video, audio)
background = len(data.categories)
decision = model.decide(logits)
truth, prediction = labels.argmax(-1), decision.labels
is_partial = (truth == background).any(1) & (prediction == background).any(1)
shown = int((is_partial * (prediction == truth).sum(1)).argmax())  # the one with the most correct seconds
print("predicted:", prediction[shown].tolist())
print("true:     ", truth[shown].tolist())
for event in find_events(decision, background=background)[shown]:
    print(f"{event.start}-{event.end} s: {data.categories[event.category]}, score {event.score:.2f}")

# %%
# Next steps
# ----------
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py train --data path/to/AVE --seeds 0 1 2     # mean and std of three trainings
#    python examples/ave_cmran.py train --data path/to/AVE --setting weak    # labels of whole videos only
#    python examples/ave_cmran.py train --resume runs/...                    # continue an interrupted training
#    python examples/ave_cmran.py evaluate --data path/to/AVE --checkpoint runs/...
#    python examples/ave_cmran.py predict --help                         # events of your own videos, as CSV and JSON
