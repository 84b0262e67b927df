"""Save networks to a directory, and load them from a directory, a run or the Hugging Face Hub.

A saved network has three files: ``config.json`` (arguments), ``model.safetensors`` (weights) and ``README.md`` (model
card).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn
from typing_extensions import Self

from ave.reading import expecting, load_json
from ave.results.files import writing

__all__ = ["Pretrained", "find_saved", "read_config"]

MODEL_CARD = Path(__file__).with_name("model_card.md")
FILES = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
HUB_OPTIONS = ("revision", "cache_dir", "force_download", "local_files_only", "token")
SET_LATER = ("standardized", "features", "longest")
"""What config.json may hold besides the arguments of the network."""
MOST_CHANNELS = 2**14
"""The largest width that is accepted."""
HUB = "hf:"
"""The prefix of names on the Hugging Face Hub on the command line."""


class Pretrained(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="crossmodal-attn",
    license="mit",
    paper_url="https://doi.org/10.1145/3394171.3413581",
    pipeline_tag="video-classification",
    tags=["audio-visual", "audio-visual-event-localization", "cross-modal-attention", "pytorch"],
    model_card_template=MODEL_CARD.read_text(encoding="utf-8"),
):
    """A module with ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``, from the mixin of huggingface_hub.

    Nothing is ever unpickled, and weights that do not fit are an error. ``save_pretrained`` takes a dict
    ``model_card_kwargs``: ``data`` describes the training dataset, and ``metrics`` maps names to numbers or text (lists
    and dicts in it are left out).
    """

    @classmethod
    def _from_pretrained(cls, *, model_id: str, strict: bool = True, **options: Any) -> Self:
        """Load a network from a directory or the Hub, in evaluation mode, on the CPU and in float32."""
        hub = {name: options.pop(name) for name in HUB_OPTIONS}
        directory = Path(model_id)
        if not directory.is_dir():
            directory = Path(snapshot_download(model_id, allow_patterns=list(FILES), **hub))
        return cls.read(model_id, directory, strict=strict, **options)

    @classmethod
    def read(cls, name: str, directory: Path, *, strict: bool = True, **options: Any) -> Self:
        """Load the network in a directory, in evaluation mode. ``options`` override the arguments in its config.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is damaged, or belongs to another network.
        """
        arguments = {**read_config(name, directory), **options}
        config, weights = (directory / file for file in FILES)
        kind = arguments.pop("network", cls.__name__)
        if kind != cls.__name__:
            raise ValueError(f"{config} must be of a {cls.__name__}, got one of a {kind}")
        if unknown := sorted(arguments.keys() - {*cls._hub_mixin_init_parameters, *SET_LATER}):
            came = _line(", ".join(unknown))
            raise ValueError(f"{config} must hold the arguments of the network, got unknown ones: {came}")
        with expecting(f"{weights} must be a complete safetensors file"), safe_open(weights, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        # No memory is used before the shapes of the weights agree with the config.
        for argument, value in arguments.items():
            most = len(shapes) if argument == "num_layers" else MOST_CHANNELS
            if isinstance(value, int) and value > most and strict:
                raise ValueError(f"{config} must hold numbers that fit its weights, got {argument}={value}")
        with torch.device("meta"):
            with expecting(f"{config} must hold the arguments of a {cls.__name__}"):
                planned = cls._build(arguments)
            with expecting(f"{weights} must hold the weights of its {CONFIG_NAME}"):
                planned.load_state_dict({name: torch.empty(shape) for name, shape in shapes.items()}, strict=strict)
        with expecting(f"{weights} must hold the weights of its {CONFIG_NAME}"):
            model = cls._build(arguments)
            model.load_state_dict(load_file(weights), strict=strict)
        return model.eval()

    @classmethod
    def _build(cls, arguments: Mapping[str, Any]) -> Self:
        """Build a network from its config.json."""
        return cls(**arguments)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a network from a directory or the Hub. Options and errors are those of the mixin of huggingface_hub."""
        config = Path(pretrained_model_name_or_path) / CONFIG_NAME
        if config.exists() and not config.is_file():  # the mixin would wait for a pipe forever
            raise ValueError(f"{config} must be a regular file, got something else")
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        with writing(save_directory / SAFETENSORS_SINGLE_FILE) as temporary:
            temporary.write_bytes(save({name: value.contiguous() for name, value in self.state_dict().items()}))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Fill in the model card with the arguments of this network, and ``data`` and ``metrics`` if given."""
        return super().generate_model_card(*args, model=self, **kwargs)


def read_config(name: str, directory: Path) -> dict[str, Any]:
    """Read the arguments of the network in a directory, and check that its files are there."""
    for file in FILES:
        if not (directory / file).is_file():
            raise FileNotFoundError(
                f"{name} must hold {' and '.join(FILES)}, as save_pretrained writes them, got no {file}; pickled "
                f"weights, such as pytorch_model.bin, are never read"
            )
    config = directory / CONFIG_NAME
    with expecting(f"{config} must hold a JSON object"):
        return {**load_json(config)}


def find_saved(checkpoint: str) -> tuple[str, Path]:
    """Find the network of ``--checkpoint``, and download it if it is on the Hub.

    Args:
        checkpoint: the directory that ``save_pretrained`` wrote, of a run, or of one seed of a run; or "hf:owner/name"
            on the Hugging Face Hub.

    Returns:
        tuple: the name of the network, and its directory.

    Raises:
        OSError: if the network is not found, or the Hub cannot be reached.
        ValueError: if ``checkpoint`` is a file, an unfinished run, or a run with several networks.
    """
    expected = f"a directory that save_pretrained wrote, or {HUB}owner/name on the Hugging Face Hub"
    path, name = Path(checkpoint), checkpoint.removeprefix(HUB)
    if not checkpoint.startswith(HUB):
        if path.is_file():
            raise ValueError(
                f"--checkpoint must be a directory, got the file {path}; --official reads the authors' files"
            )
        found = sorted([*path.glob("model"), *path.glob("seed-*/model")]) or [path]
        if found == [path] and any(path.glob("seed-*")):
            raise ValueError(f"--checkpoint must be a finished run, got {path}: finish it with train --resume {path}")
        if len(found) > 1:
            several = ", ".join(map(str, found))
            raise ValueError(
                f"--checkpoint must be one network, got {path}, which holds several: name one of {several}"
            )
        if not found[0].is_dir():  # a misspelled directory is never looked up on the Hub
            raise FileNotFoundError(f"--checkpoint must be {expected}, got {path}, which is not a directory")
        return str(found[0]), found[0]
    if Path(name).is_dir() or name.count("/") != 1:
        raise ValueError(f"--checkpoint must be {expected}, got {checkpoint}")
    try:
        return name, Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # in some versions, the errors of the Hub have no common base class
        raise OSError(f"{checkpoint} must be on the Hugging Face Hub, got: {_line(error)}") from error


def _line(error: object) -> str:
    """Shorten a message to one line, since torch lists every weight."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
