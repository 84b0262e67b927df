"""VGG-19 up to its last pooling, with the weights that made the visual features of the AVE release, or torchvision's.

The two have the same names and shapes, but other channels: a network that was trained on the features of one cannot use
those of the other. The digest of the file tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ave.videos.inputs import normalize_imagenet, to_float
from ave.videos.weights import fill, is_hdf5, read_keras, read_state_dict, sha256

__all__ = ["FILES", "VGG19", "build_stack"]

CHANNELS = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))
"""The channels of the convolutions between the poolings."""
CAFFE_MEANS = (103.939, 116.779, 123.68)  # blue, green, red
Training = Literal["caffe", "torchvision"]
DIGESTS: dict[str, Training] = {"d01eb7cb": "caffe", "dcbb9e9d": "torchvision"}
"""The training of the weights in a .pth file, by the first digits of its digest, which are in its name."""
FILES = (
    "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5 of Keras or vgg19-d01eb7cb.pth (as in the AVE release),"
    " or torchvision's vgg19-dcbb9e9d.pth (other features)"
)


def build_stack(channels: Sequence[Sequence[int]], inputs: int = 3) -> nn.Sequential:
    """Build groups of convolutions 3 x 3, each with ReLU, with a max-pooling 2 x 2 after each group.

    Args:
        channels: the output channels of the convolutions, by group.
        inputs: the channels of the input.
    """
    layers: list[nn.Module] = []
    for group in channels:
        for outputs in group:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG19(nn.Module):
    """VGG-19 up to the last max-pooling, pool5.

    Args:
        weights: an HDF5 file of Keras, or a .pth file with the digest of ``vgg19-d01eb7cb.pth``, both with the original
            weights from Caffe; or torchvision's ``vgg19-dcbb9e9d.pth``.

    Attributes:
        training_of_weights: "caffe" or "torchvision". It decides how frames are normalized: blue, green, red, minus
            their means; or red, green, blue in [0, 1], minus the mean, divided by the standard deviation.

    Shape:
        - frames: uint8, (N, 3, 224, 224), RGB
        - output: float32, (N, 7, 7, 512), not negative

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is damaged, or holds other weights.
    """

    name, input_size = "vgg19", 224

    def __init__(self, weights: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            self.features = build_stack(CHANNELS)
        self.sha256: str | None = sha256(weights)
        self.training_of_weights: Training = "caffe"
        if is_hdf5(weights):
            state_dict = _read_keras(weights, self.features)
        else:
            if self.sha256[:8] not in DIGESTS:
                came = f"one with the SHA-256 {self.sha256[:8]}..., whose training is not known"
                own = "for weights of your own, give your own function as MODULE:FUNCTION"
                raise ValueError(f"{weights} must be {FILES}, got {came}: {own}")
            self.training_of_weights = DIGESTS[self.sha256[:8]]
            stored = read_state_dict(weights)
            state_dict = {name.removeprefix("features."): value for name, value in stored.items()}
        fill(self.features, state_dict, weights, self.name, ignored=("classifier.",))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Compute the features of frames."""
        frames = to_float(frames, self.input_size, next(self.parameters()).device)
        maps: Tensor = self.features(normalize(frames, self.training_of_weights))
        return maps.permute(0, 2, 3, 1).float()


def normalize(frames: Tensor, training: Training) -> Tensor:
    """Normalize frames as the training of the weights did.

    Args:
        frames: float, (N, 3, H, W), RGB in [0, 255].
        training: the training of the weights.
    """
    if training == "caffe":
        return frames.flip(1) - frames.new_tensor(CAFFE_MEANS)[:, None, None]
    return normalize_imagenet(frames)


def _read_keras(path: Path, stack: nn.Sequential) -> dict[str, Tensor]:
    """Read the convolutions ``block1_conv1`` to ``block5_conv4`` of Keras under the names of the stack."""
    layers = [f"block{group}_conv{index}" for group, row in enumerate(CHANNELS, 1) for index, _ in enumerate(row, 1)]
    convolutions = [(name, layer) for name, layer in stack.named_children() if isinstance(layer, nn.Conv2d)]
    shapes = {
        layer: (3, 3, convolution.in_channels, convolution.out_channels)
        for layer, (_, convolution) in zip(layers, convolutions, strict=True)
    }
    arrays = read_keras(path, shapes)
    return {
        f"{name}.{part}": arrays[f"{layer}.{part}"]
        for layer, (name, _) in zip(layers, convolutions, strict=True)
        for part in ("weight", "bias")
    }
