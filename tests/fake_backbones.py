"""Tiny networks for frames and sound, which `extract` finds as fake_backbones:make_visual and :make_audio."""

import torch


class Visual:
    """The mean colors of four quarters, signed."""

    input_size = 8

    def __call__(self, frames):
        return frames.float().unflatten(3, (2, 4)).unflatten(2, (2, 4)).mean((3, 5)).permute(0, 2, 3, 1) - 99


class Audio:
    """Loudness and smoothness of a second, not negative."""

    rate, context = 8000, 0.25

    def __call__(self, waveform):
        return torch.stack([waveform.square().mean(1), waveform.diff(dim=1).abs().mean(1)], 1)


def make_visual(device):
    return Visual()


def make_audio(device):
    return Audio()
