"""ResNet-152 up to its last block, with weights of torchvision.

This is probably what the paper calls "ResNet-151", but that is not verified: its features were not published in full.
With the weights IMAGENET1K_V1, the maps have the shape of those in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ave.videos.inputs import normalize_imagenet, to_float
from ave.videos.weights import fill, read_state_dict, sha256

__all__ = ["Bottlenecks", "ResNet152"]

BLOCKS = (3, 8, 36, 3)
EXPANSION = 4
FILES = "resnet152-394f9c45.pth of torchvision"


class _Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 and 1 x 1 beside a shortcut. The stride is in the second one."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        summed: Tensor = y + self.downsample(x)
        return summed.relu()


class Bottlenecks(nn.Module):
    """The convolutions of a ResNet with bottlenecks, under torchvision's names.

    Args:
        blocks: number of blocks in each of the layers. Each layer after the first halves height and width.
        width: the width of the first layer; each further layer doubles it.

    Shape:
        - input: (N, 3, H, W)
        - output: (N, 4 * width * 2 ** (layers - 1), H / 32, W / 32) with four layers, not negative
    """

    def __init__(self, blocks: Sequence[int] = BLOCKS, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1, self.maxpool = nn.BatchNorm2d(width), nn.MaxPool2d(3, stride=2, padding=1)
        inputs, self.layers = width, len(blocks)
        for index, count in enumerate(blocks):
            layer = []
            for block in range(count):
                layer.append(_Bottleneck(inputs, width << index, stride=2 if index and not block else 1))
                inputs = EXPANSION * (width << index)
            self.add_module(f"layer{index + 1}", nn.Sequential(*layer))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the maps of the last layer."""
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for index in range(self.layers):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return x


class ResNet152(nn.Module):
    """ResNet-152 up to layer4, after its ReLU.

    Args:
        weights: a .pth file with the names of torchvision, such as ``resnet152-394f9c45.pth`` (IMAGENET1K_V1).

    Shape:
        - frames: uint8, (N, 3, 224, 224), RGB
        - output: float32, (N, 7, 7, 2048), not negative

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is damaged, or holds other weights.
    """

    name, input_size = "resnet152", 224

    def __init__(self, weights: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            self.network = Bottlenecks()
        self.sha256: str | None = sha256(weights)
        fill(self.network, read_state_dict(weights), weights, self.name, ignored=("fc.",))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Compute the features of frames."""
        frames = to_float(frames, self.input_size, next(self.parameters()).device)
        maps: Tensor = self.network(normalize_imagenet(frames))
        return maps.permute(0, 2, 3, 1).float()
