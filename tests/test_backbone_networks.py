"""Backbones equal slow loops in NumPy and known values, and load their weights from each kind of file."""

import io
import math
import zipfile
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from torch import nn

import backbone_oracles as oracles
from ave.videos import aisfx, resnet152, vgg19, vggish
from ave.videos.aisfx import AISFX
from ave.videos.efficientnet_lite import FILE, HEAD, PACKAGE, EfficientNetLite0
from ave.videos.inputs import count_samples
from ave.videos.resnet152 import Bottlenecks, ResNet152
from ave.videos.vgg19 import VGG19, build_stack
from ave.videos.vggish import VGGish, VGGishNetwork
from ave.videos.weights import fill, find_packaged, read_state_dict, sha256
from oracles import fill_parameters

SMALL = ((2, 3), (5,))  # channels
BANDS = {"lowest": 125, "highest": 7500, "bands": 64}
needs_aisfx = pytest.mark.skipif(
    find_packaged("aisfx", "checkpoint.pth") is None,
    reason="aisfx is not installed: pip install --no-deps aisfx==0.1.2",
)


def to_numpy(module):
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def draw_statistics(module, draw):
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean = draw(*layer.running_mean.shape).to(layer.weight.dtype)
            layer.running_var = draw(*layer.running_var.shape).to(layer.weight.dtype).square() + 0.5
    return module.eval()


def make_sine(rate):
    return torch.sin(2 * math.pi * 1000 * torch.arange(3 * rate, dtype=torch.float64) / rate).float()[None]


def test_vggish_log_mel_of_a_sine():
    spectra = vggish.compute_log_mel(make_sine(16_000))[0]
    assert spectra.shape == (298, 64)
    assert spectra.mean(0).argmax() == 19
    for came, known in zip(
        (spectra.mean(), spectra.std(correction=0), spectra.min(), spectra.max()),
        (-3.42962, 2.12658, -4.6012, 4.8111),
        strict=True,
    ):
        assert came.item() == pytest.approx(known, abs=2e-4)
    assert vggish.compute_log_mel(torch.zeros(1, 400)).unique().item() == pytest.approx(-4.605, abs=1e-3)


def test_vggish_log_mel_is_its_definition(draw, assert_close):
    waveform = draw(1, 731, dtype=torch.float32) / 7
    expected = np.zeros((3, 64))
    for index in range(3):
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
        samples = waveform[0, index * 160 : index * 160 + 400].double().numpy() * window
        spectrum = [oracles.magnitude(samples, frequency, 512) for frequency in range(257)]
        for band in range(64):
            weights = oracles.mel_weights(band, np.arange(257) * 16_000 / 512, **BANDS)
            expected[index, band] = np.log(np.dot(weights, spectrum) + 0.01)
    assert_close(vggish.compute_log_mel(waveform)[0], torch.from_numpy(expected), torch.float32)


def test_aisfx_spectrogram_is_its_definition(draw, assert_close):
    waveform = draw(1, 4000, dtype=torch.float32).clamp(-1, 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2047)
    hertz = np.arange(1025) * 44_100 / 2048
    weights = np.array([oracles.mel_weights(band, hertz, 96, 0, 22_050) for band in range(96)])
    samples = waveform[0, 1024:3072].double().numpy() * window
    power = [oracles.magnitude(samples, frequency, 2048) ** 2 for frequency in range(1025)]
    expected = np.log10(1 + 1e4 * (weights @ power) / weights.sum(1)) / 9.457798957824707
    assert_close(aisfx.compute_spectrogram(waveform)[0, 1], torch.from_numpy(expected), torch.float32)


def test_aisfx_takes_100_spectra_around_a_second():
    samples = count_samples(AISFX.rate, AISFX.context)
    clap = torch.zeros(1, samples)
    clap[0, round(AISFX.rate * AISFX.context) + AISFX.rate // 2] = 1  # in the middle of the second
    loudness = aisfx.compute_spectrogram(clap)[0].sum(1)
    assert len(loudness) == 100
    assert loudness.nonzero().flatten().tolist() == [49, 50]


@pytest.mark.parametrize(
    ("make", "shape", "parameters", "output"),
    [
        (lambda: build_stack(vgg19.CHANNELS), (2, 3, 224, 224), 20_024_384, (2, 512, 7, 7)),
        (Bottlenecks, (2, 3, 224, 224), 60_192_808 - 2048 * 1000 - 1000, (2, 2048, 7, 7)),  # without the head
        (VGGishNetwork, (2, 96, 64), 72_141_184, (2, 128)),
    ],
)
def test_sizes(make, shape, parameters, output):
    with torch.device("meta"):
        network = make().eval()
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        assert network(torch.empty(shape)).shape == output


def test_resnet_is_its_definition(draw, assert_close):
    network = draw_statistics(fill_parameters(Bottlenecks((2, 1, 3), width=3).double()), draw)
    x = draw(1, 3, 37, 29)
    expected = oracles.resnet(x[0].numpy(), (2, 1, 3), to_numpy(network))
    assert_close(network(x)[0], torch.from_numpy(expected))


def test_resnet_from_a_file(tmp_path, monkeypatch, draw, assert_close):
    make = partial(Bottlenecks, (1, 2), width=3)
    network = draw_statistics(fill_parameters(make()), draw)
    torch.save({**network.state_dict(), "fc.weight": torch.ones(7, 24)}, tmp_path / "resnet.pth")
    monkeypatch.setattr(resnet152, "Bottlenecks", make)
    monkeypatch.setattr(ResNet152, "input_size", 24)
    frames = torch.randint(256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for frame, came in zip(frames, ResNet152(tmp_path / "resnet.pth")(frames), strict=True):
        x = [
            (color / 255 - mean) / std
            for color, mean, std in zip(
                frame.double().numpy(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True
            )
        ]
        expected = oracles.resnet(np.stack(x), (1, 2), to_numpy(network)).transpose(1, 2, 0)
        assert_close(came, torch.from_numpy(expected), torch.float32)


def test_vggish_is_its_definition(draw, assert_close):
    channels = ((2,), (3,), (2, 3), (3, 5))
    network = fill_parameters(VGGishNetwork(channels, hidden=7).double())
    x, state = draw(1, 96, 64), to_numpy(network.features)
    maps = oracles.stack(x.numpy(), channels, state)
    flat = np.array([maps[c, t, f] for t in range(6) for f in range(4) for c in range(5)])
    for layer in (0, 2, 4):
        weight, bias = (getattr(network.embeddings[layer], part).detach().numpy() for part in ("weight", "bias"))
        flat = oracles.relu(weight @ flat + bias)
    assert_close(network(x)[0], torch.from_numpy(flat))


@pytest.fixture
def small_vgg(monkeypatch):
    """Return random weights of a small VGG, whose class is patched to their size."""
    monkeypatch.setattr(vgg19, "CHANNELS", SMALL)
    monkeypatch.setattr(VGG19, "input_size", 12)
    return fill_parameters(build_stack(SMALL)).state_dict()


def write_keras(path, weights, names=("{0}_W_1:0", "{0}_b_1:0")):
    """Write weights as Keras does, with the classifier: groups of layers, kernels of (height, width, in, out)."""
    with h5py.File(path, "w") as file:
        for layer, place in {"block1_conv1": 0, "block1_conv2": 2, "block2_conv1": 5}.items():
            kernel = weights[f"{place}.weight"].permute(2, 3, 1, 0).numpy()
            for name, value in zip(names, (kernel, weights[f"{place}.bias"].numpy()), strict=True):
                file[f"{layer}/{name.format(layer)}"] = value
        file.create_group("block2_pool")
        file["predictions/predictions_W_1:0"], file["predictions/predictions_b_1:0"] = np.ones((7, 3)), np.ones(3)
    return path


def write_pth(path, weights, monkeypatch, training):
    """Write weights as torchvision does, and let their digest be known."""
    torch.save(
        {**{f"features.{name}": value for name, value in weights.items()}, "classifier.0.bias": torch.ones(3)}, path
    )
    monkeypatch.setitem(vgg19.DIGESTS, sha256(path)[:8], training)
    return path


@pytest.mark.parametrize("kind", ["keras", "new keras", "caffe", "torchvision"])
def test_vgg_from_each_file(kind, small_vgg, tmp_path, monkeypatch, assert_close):
    if kind in ("caffe", "torchvision"):
        network = VGG19(write_pth(tmp_path / "vgg.pth", small_vgg, monkeypatch, kind))
        assert network.training_of_weights == kind
    else:
        names = {"names": ("{0}/kernel:0", "{0}/bias:0")} if kind == "new keras" else {}
        network = VGG19(write_keras(tmp_path / "vgg.h5", small_vgg, **names))
        assert network.training_of_weights == "caffe"
    assert network.sha256 == sha256(next(tmp_path.iterdir()))
    frames = torch.randint(256, (2, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = network(frames)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    state = {name: value.double().numpy() for name, value in small_vgg.items()}
    for frame, came in zip(frames, features, strict=True):
        red, green, blue = frame.double().numpy()
        x = np.stack([blue - 103.939, green - 116.779, red - 123.68])
        if kind == "torchvision":
            x = np.stack([(red / 255 - 0.485) / 0.229, (green / 255 - 0.456) / 0.224, (blue / 255 - 0.406) / 0.225])
        expected = oracles.stack(x, SMALL, state).transpose(1, 2, 0)
        assert_close(came, torch.from_numpy(expected), torch.float32)
    with pytest.raises(
        ValueError, match=r"frames must be torch.uint8 of shape \(N, 3, 12, 12\), got .*\(2, 3, 12, 13\)"
    ):
        network(torch.zeros(2, 3, 12, 13, dtype=torch.uint8))


def test_vgg_of_unknown_training_is_refused(small_vgg, tmp_path):
    torch.save({f"features.{name}": value for name, value in small_vgg.items()}, tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match=r"vgg\.pth must be .*notop\.h5 of Keras or vgg19-d01eb7cb\.pth.*not known"):
        VGG19(tmp_path / "vgg.pth")


def link_away(file):
    del file["block1_conv1"]
    file["block1_conv1"] = h5py.ExternalLink("other.h5", "/block1_conv1")


def use_virtual(file):
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "b", (2,))
    del file["block1_conv1/block1_conv1_b_1:0"]
    file.create_virtual_dataset("block1_conv1/block1_conv1_b_1:0", layout)


def declare_much(file):
    del file["block2_conv1/block2_conv1_W_1:0"]
    file.create_dataset("block2_conv1/block2_conv1_W_1:0", (2**20, 2**20, 3, 5), "f4", chunks=(1, 1, 3, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (link_away, "in block1_conv1, none where the weight of shape (3, 3, 3, 2) is needed"),
        (use_virtual, "in block1_conv1, a bias that is not plain numbers"),
        (declare_much, "in block2_conv1, one of shape (1048576, 1048576, 3, 5) where the weight of shape"),
        (lambda file: file.pop("block1_conv2"), "in block1_conv2, none where the weight"),
    ],
)
def test_hostile_keras_files_are_refused(change, message, small_vgg, tmp_path):
    path = write_keras(tmp_path / "vgg.h5", small_vgg)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(
        ValueError, match="must be an HDF5 file with the weights of a network by Keras, got: "
    ) as caught:
        VGG19(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cut_keras_file_is_refused(small_vgg, tmp_path):
    path = write_keras(tmp_path / "vgg.h5", small_vgg)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"vgg\.h5 must be an HDF5 file"):
        VGG19(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("2.bias"), "got no 2.bias"),
        (lambda weights: weights.update({"7.weight": torch.ones(1)}), "got an unknown 7.weight"),
        (lambda weights: weights.update({"0.bias": torch.ones(3)}), "got 0.bias in torch.float32 of shape (3,), not"),
        (lambda weights: weights.update({"0.bias": torch.ones(2, dtype=torch.int64)}), "got 0.bias in torch.int64"),
        (lambda weights: weights["2.bias"].fill_(math.nan), "got 2.bias with NaN or infinite values"),
        (dict.clear, "and 4 more differences"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, message, tmp_path):
    weights = dict(fill_parameters(build_stack(SMALL)).state_dict())
    change(weights)
    with torch.device("meta"):
        network = build_stack(SMALL)
    with pytest.raises(ValueError, match=r"x\.pth must hold the weights of vgg19, got") as caught:
        fill(network, weights, tmp_path / "x.pth", "vgg19")
    assert message in str(caught.value)
    assert network[0].bias.is_meta


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ckpt", b"tensors" + bytes.fromhex("57fb808b247547db"), "got a checkpoint of TensorFlow"),
        ("a.ckpt.data-00000-of-00001", b"\0" * 64, "got a checkpoint of TensorFlow"),
        ("a.pth", b"", "must be a complete checkpoint of tensors only"),
        ("a.pth", b"PK\3\4" + b"\0" * 99, "must be a complete checkpoint of tensors only"),
        ("a.pth", [1, 2], "must hold the weights of a network, got: state_dict must map names to tensors"),
        ("a.pth", {"a": torch.ones(1).expand(2**40)}, "got: a of shape (1099511627776,), which is not stored in full"),
        ("a.pth", nn.ReLU(), "must be a complete checkpoint of tensors only, by torch.save, got"),
    ],
)
def test_files_without_weights_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=name) as caught:
        read_state_dict(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def small_vggish(monkeypatch):
    """Return a small VGGish with random weights, whose features of a sine are the known ones."""
    make = partial(VGGishNetwork, ((2,), (3,), (2,), (5,)), 7)
    network = fill_parameters(make())
    monkeypatch.setattr(vggish, "VGGishNetwork", make)
    with torch.no_grad():
        spectra = vggish.compute_log_mel(make_sine(16_000))[0, :288]
        features = torch.stack([network(example[None])[0] for example in spectra.split(96)])
    monkeypatch.setattr(vggish, "SINE_MEAN", features.mean().item() * 1.05)
    monkeypatch.setattr(vggish, "SINE_DEVIATION", features.std(correction=0).item() * 0.95)
    return network


@pytest.mark.parametrize("prefixes", [("features.", "embeddings."), ("features_network.", "embedding_network.")])
def test_vggish_from_each_file(prefixes, small_vggish, tmp_path, draw, assert_close):
    features, embeddings = prefixes
    weights = {
        name.replace("features.", features).replace("embeddings.", embeddings): value
        for name, value in small_vggish.state_dict().items()
    }
    torch.save({**weights, "pproc.pca_means": torch.ones(3)}, tmp_path / "vggish.pth")
    network = VGGish(tmp_path / "vggish.pth")
    waveform = draw(2, 16_000, dtype=torch.float32) / 5
    expected = small_vggish(vggish.compute_log_mel(waveform)[:, :96])
    assert_close(network(waveform), expected.detach())
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(waveform)
    assert rough.dtype == torch.float32
    assert_close(rough, expected.detach().to(torch.bfloat16).float(), torch.bfloat16)
    with pytest.raises(ValueError, match=r"waveform must be torch.float32 of shape \(N, 16000\), got"):
        network(waveform[:, 1:])


def test_vggish_of_other_weights_is_refused(small_vggish, tmp_path):
    torch.save({name: value / 2 for name, value in small_vggish.state_dict().items()}, tmp_path / "vggish.pth")
    with pytest.raises(ValueError, match=r"vggish\.pth must hold the weights of VGGish, which give mean .* got mean"):
        VGGish(tmp_path / "vggish.pth")


@pytest.mark.parametrize("name", ["vggish_pca_params-970ea276.pth", "other.pth"])
def test_pca_parameters_are_refused(name, tmp_path):
    torch.save({"pca_eigen_vectors": torch.ones(3, 3), "pca_means": torch.ones(3)}, tmp_path / name)
    with pytest.raises(ValueError, match="got parameters of PCA, which the AVE release does not use"):
        VGGish(tmp_path / name)


def test_aisfx_from_a_file(tmp_path, draw, monkeypatch, assert_close):
    monkeypatch.setattr(aisfx, "CHANNELS", (2, 3, 2, 5))
    blocks = nn.ModuleList(aisfx._Block(*pair) for pair in ((1, 2), (2, 3), (3, 2), (2, 5)))
    draw_statistics(fill_parameters(blocks), draw)
    weights = {f"embedding_net.conv_block{int(name[0]) + 1}{name[1:]}": v for name, v in blocks.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(({**weights, "fc.0.0.bias": torch.ones(3)}, {"set": (np.int64(0), 78), "other": np.float64(1)}), buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(tmp_path / "checkpoint.pth", "w") as old:
        for name in archive.namelist():  # as a NumPy before 2 wrote it
            old.writestr(name, archive.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    network = AISFX(tmp_path / "checkpoint.pth")
    waveform = draw(1, 103_424, dtype=torch.float32).clamp(-1, 1)
    state, x = to_numpy(blocks), aisfx.compute_spectrogram(waveform).double().numpy()
    for block in range(4):
        for layer in (1, 2):
            x = oracles.convolve(x, state[f"{block}.conv{layer}.weight"])
            x = oracles.relu(oracles.normalize_batch(x, state, f"{block}.bn{layer}"))
        if block < 3:
            x = oracles.pool(x)
    expected = torch.from_numpy(x.mean(2).max(1))
    assert_close(network(waveform)[0], expected, torch.float32)


@needs_aisfx
def test_packaged_aisfx_is_the_network_of_its_package(draw, assert_close):
    from aisfx.models.cnn2d import EmbeddingNet

    ours, theirs = AISFX(), EmbeddingNet("max", 3, 1, 64)
    stored = read_state_dict(find_packaged("aisfx", "checkpoint.pth"), aisfx.ALLOWED)
    prefix = "embedding_net."
    theirs.load_state_dict({name.removeprefix(prefix): v for name, v in stored.items() if name.startswith(prefix)})
    waveform = draw(2, 103_424, dtype=torch.float32).clamp(-1, 1)
    with torch.no_grad():
        expected = theirs.eval()(aisfx.compute_spectrogram(waveform))
    features = ours(waveform)
    assert features.shape == (2, 512)
    assert features.min() >= 0
    assert_close(features, expected)


def test_efficientnet_lite_is_the_network_of_its_package():
    package = pytest.importorskip("efficientnet_lite_pytorch", reason='pip install -e ".[backbones]"')
    ours, theirs = EfficientNetLite0(), package.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(find_packaged(PACKAGE, FILE), weights_only=True))
    frames = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = ours(frames)
    assert features.shape == (2, 7, 7, 320)
    assert features.dtype == torch.float32
    assert features.min() < 0
    assert not any(hasattr(ours.network, part) for part in HEAD)
    with torch.no_grad():
        expected = theirs.eval().extract_features((frames.float() - 127) / 128)
        came = theirs._swish(theirs._bn1(theirs._conv_head(features.permute(0, 3, 1, 2))))
    torch.testing.assert_close(came, expected, rtol=1e-3, atol=1e-3)
