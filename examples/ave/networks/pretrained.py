"""Networks that are saved to a directory, and loaded from there, from a run, or from the Hugging Face Hub.

A saved network is ``config.json``, its arguments; ``model.safetensors``, its weights; and ``README.md``, its card.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from typing_extensions import Self

from ave.results.files import writing

__all__ = ["Pretrained", "find_checkpoint"]

MODEL_CARD = Path(__file__).with_name("model_card.md")
FILES = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)


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
    """A module with ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``, by the mixin of huggingface_hub.

    Nothing is ever unpickled, and weights that do not fit are an error. ``save_pretrained`` takes
    ``model_card_kwargs``: ``data`` says in words what the network was trained on, and ``metrics`` maps names to numbers
    or text (lists and mappings in it are left out).
    """

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        """Build the network in evaluation mode, on the CPU and in float32; the mixin has read ``config.json``."""
        directory = Path(model_id)
        if not directory.is_dir():
            directory = Path(
                snapshot_download(
                    model_id,
                    allow_patterns=list(FILES),
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        cls._check_files(model_id, directory)
        config, weights = (directory / name for name in FILES)
        try:
            model = cls(**model_kwargs)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{config} must hold the arguments of a {cls.__name__}, got: {_line(error)}") from error
        try:
            model.load_state_dict(load_file(weights), strict=strict)
        except SafetensorError as error:
            raise ValueError(f"{weights} must be a complete safetensors file, got: {_line(error)}") from error
        except RuntimeError as error:
            raise ValueError(f"{weights} must hold the weights of its {CONFIG_NAME}, got: {_line(error)}") from error
        return model.eval()

    @classmethod
    def _check_files(cls, name: str, directory: Path) -> None:
        """Check that both files are there, and that the config holds nothing but arguments of the network."""
        for file in FILES:
            if not (directory / file).is_file():
                raise FileNotFoundError(
                    f"{name} must hold {' and '.join(FILES)}, as save_pretrained writes them, got no {file}; pickled "
                    f"weights, such as pytorch_model.bin, are never read"
                )
        path = directory / CONFIG_NAME
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} must be JSON, got: {error}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
        if unknown := sorted(set(config) - set(cls._hub_mixin_init_parameters)):
            came = _line(", ".join(unknown))
            raise ValueError(f"{path} must hold the arguments of the network, got unknown ones: {came}")

    @classmethod
    def load(cls, checkpoint: str) -> Self:
        """Load the network of ``--checkpoint``, in evaluation mode and on the CPU.

        Args:
            checkpoint: a directory that ``save_pretrained`` wrote; the directory of a training, or of one of its
                seeds; or, if no such path exists, "owner/name" on the Hugging Face Hub.

        Raises:
            OSError: if there is no such network, or the Hub cannot be reached.
            ValueError: if a training left several networks, or a file is damaged.
        """
        name = find_checkpoint(checkpoint)
        if Path(name).is_dir():
            cls._check_files(name, Path(name))
            return cls.from_pretrained(name)
        try:
            return cls.from_pretrained(name)
        except Exception as error:  # the errors of the Hub have no common base class in all versions
            if type(error) is ValueError:  # of damage, in what was downloaded
                raise
            raise OSError(
                f"{name} must be a directory that save_pretrained wrote, or owner/name on the Hugging Face Hub, got: "
                f"{_line(error)}"
            ) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        with writing(save_directory / SAFETENSORS_SINGLE_FILE) as temporary:
            temporary.write_bytes(save({name: value.contiguous() for name, value in self.state_dict().items()}))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Fill in the template with the arguments of this network, and ``data`` and ``metrics`` if they are given."""
        return super().generate_model_card(*args, model=self, **kwargs)


def find_checkpoint(checkpoint: str) -> str:
    """Return the directory of the one network that a training left, or else ``checkpoint`` itself.

    Raises:
        ValueError: if it is a file, or the training left several networks.
    """
    path = Path(checkpoint)
    if path.is_file():
        raise ValueError(f"--checkpoint must be a directory, got the file {path}; --official reads the authors' files")
    found = sorted(map(str, [*path.glob("model"), *path.glob("seed-*/model")]))
    if len(found) > 1:
        came = f"got {path}, which holds several: name one of {', '.join(found)}"
        raise ValueError(f"--checkpoint must be one network, {came}")
    return found[0] if found else checkpoint


def _line(error: object) -> str:
    """Shorten a message to one line; torch would list every single weight."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
