"""
AGSCA on your own feature maps
==============================

:class:`~crossmodal_attn.AGSCA` takes the feature maps of any backbone with channels last: 7 x 7 or a volume, from
images or video. The query can be any vector: audio, the embedding of a caption, or of a class.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from crossmodal_attn import AGSCA
from crossmodal_attn.plots import plot_spatial_attention

torch.manual_seed(0)

# %%
# Channels first
# --------------
# Convolutional networks return (N, C, H, W), with time as part of the batch. AGSCA needs the leading dimensions of the
# audio first and the channels last. So split the batch dimension, and move the channels.

backbone = nn.Sequential(nn.Conv2d(3, 48, 8, stride=8), nn.ReLU())
frames = torch.rand(2, 10, 3, 96, 96)  # 2 videos of 10 frames
audio = torch.rand(2, 10, 128)
maps = backbone(frames.flatten(0, 1))
print("from the backbone:", tuple(maps.shape))
maps = maps.unflatten(0, (2, 10)).movedim(2, -1)
print("for AGSCA:        ", tuple(maps.shape))
layer = AGSCA(video_dim=48, audio_dim=128)
output, channel_map, spatial_map = layer(maps, audio, need_weights=True)
print(f"output {tuple(output.shape)}, channel map {tuple(channel_map.shape)}, spatial map {tuple(spatial_map.shape)}")

# %%
# Volumes and tokens
# ------------------
# All dimensions between the leading dimensions of the audio and the channels are space: D x H x W of a 3-D network, or
# the patches of a vision transformer.

volume = nn.Conv3d(3, 48, (2, 16, 16), stride=(2, 16, 16))(torch.rand(2, 3, 8, 112, 112))
print("3-D network:       ", tuple(volume.shape))
output, _, spatial_map = layer(volume.movedim(1, -1), torch.rand(2, 128), need_weights=True)
print("attention in D,H,W:", tuple(spatial_map.shape))

patches = torch.rand(2, 10, 196, 48)
print("patches:           ", tuple(layer(patches, audio).shape))

# %%
# Learning where to look
# ----------------------
# A noisy map has two objects in different cells, and a sound belongs to one of them. The task is to predict the *color*
# of this object: three numbers in the features of its cell. The network is not told which cell it is.

OBJECTS, GRID, WIDTH = 4, 7, 32
looks, sounds = torch.randn(OBJECTS, WIDTH), torch.randn(OBJECTS, 16)


def make_batch(size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return maps, sounds, the color of the object with the sound, and its cell."""
    objects = torch.rand(size, OBJECTS).argsort(-1)[:, :2]
    cells = torch.rand(size, GRID * GRID).argsort(-1)[:, :2]
    colors = torch.randn(size, 2, 3)
    features = looks[objects] * 2
    features[..., -3:] = 3 * colors
    maps = torch.randn(size, GRID * GRID, WIDTH) * 0.3
    maps.scatter_(1, cells[..., None].expand(-1, -1, WIDTH), features)
    audio = sounds[objects[:, 0]] + torch.randn(size, 16) * 0.2
    return maps.unflatten(1, (GRID, GRID)), audio, colors[:, 0], cells[:, 0]


layer, head = AGSCA(WIDTH, 16, hidden_dim=64), nn.Linear(WIDTH, 3)
optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 3e-3)
for step in range(601):
    maps, audio, color, _ = make_batch(128)
    loss = nn.functional.mse_loss(head(layer(maps, audio)), color)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 150 == 0:
        print(f"step {step:3}   squared error {loss.item():.3f} (predicting 0: {color.square().mean():.3f})")

# %%
# To predict the color, the network must attend to the object with the sound, and not to the other one.

maps, audio, color, cell = make_batch(500)
with torch.no_grad():
    *_, spatial_map = layer(maps, audio, need_weights=True)
largest = spatial_map.flatten(1).argmax(-1)
right = (largest == cell).float().mean().item()
print(f"largest weight on the object with the sound: {right:.0%} (by chance: {1 / GRID**2:.0%})")

figure, grid = plt.subplots(1, 5, figsize=(9, 2.1), layout="constrained")
for sample, axes in enumerate(grid):
    plot_spatial_attention(spatial_map[sample], vmax=spatial_map.max().item(), ax=axes)
    row, column = divmod(int(cell[sample]), GRID)
    axes.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="cyan", linewidth=2))
figure.suptitle("Spatial attention; the object with the sound is outlined", fontsize="medium")
