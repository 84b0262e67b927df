"""Slow, literal NumPy versions of the backbones: convolutions, poolings, Fourier transforms and mel filters."""

import numpy as np


def convolve(x, weight, bias=0.0, stride=1):
    """Convolve (in, H, W) with (out, in, k, k), with zeros around it, position by position."""
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    rows, columns = ((length - 1) // stride + 1 for length in x.shape[1:])
    output = np.empty((len(weight), rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
            output[:, i, j] = (weight * patch).sum((1, 2, 3))
    return output + np.reshape(bias, (-1, 1, 1))


def pool(x, size=2, stride=2, padding=0):
    """Take the maximum of each window of (C, H, W)."""
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2), constant_values=-np.inf)
    rows, columns = ((length - size) // stride + 1 for length in x.shape[1:])
    windows = [
        [x[:, i * stride : i * stride + size, j * stride : j * stride + size].max((1, 2)) for j in range(columns)]
        for i in range(rows)
    ]
    return np.array(windows).transpose(2, 0, 1)


def relu(x):
    return np.maximum(x, 0)


def normalize_batch(x, state, name):
    """Apply the batch normalization ``name`` in evaluation mode to (C, H, W)."""
    weight, bias, mean, var = (
        state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def stack(x, channels, state):
    """Compute groups of convolutions with a pooling after each, with the names of an ``nn.Sequential``."""
    place = 0
    for group in channels:
        for _ in group:
            x = relu(convolve(x, state[f"{place}.weight"], state[f"{place}.bias"]))
            place += 2  # a ReLU has a place, too
        x = pool(x)
        place += 1
    return x


def resnet(x, blocks, state):
    """Compute a ResNet with bottlenecks, with the names of torchvision."""
    x = relu(normalize_batch(convolve(x, state["conv1.weight"], stride=2), state, "bn1"))
    x = pool(x, size=3, stride=2, padding=1)
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            y = relu(normalize_batch(convolve(x, state[f"{name}.conv1.weight"]), state, f"{name}.bn1"))
            y = relu(normalize_batch(convolve(y, state[f"{name}.conv2.weight"], stride=stride), state, f"{name}.bn2"))
            y = normalize_batch(convolve(y, state[f"{name}.conv3.weight"]), state, f"{name}.bn3")
            if block == 0:
                shortcut = convolve(x, state[f"{name}.downsample.0.weight"], stride=stride)
                x = normalize_batch(shortcut, state, f"{name}.downsample.1")
            x = relu(y + x)
    return x


def mel_weights(band, hertz, bands, lowest, highest):
    """Compute the weights of frequencies in a triangular filter of peak 1."""
    low, high, mel = (1127 * np.log(1 + frequency / 700) for frequency in (lowest, highest, hertz))
    step = (high - low) / (bands + 1)
    distance = abs(mel - (low + (band + 1) * step))
    return np.where(hertz == 0, 0, relu(1 - distance / step))


def magnitude(samples, frequency, fft):
    """Compute one frequency of the Fourier transform."""
    return abs((samples * np.exp(-2j * np.pi * frequency * np.arange(len(samples)) / fft)).sum())
