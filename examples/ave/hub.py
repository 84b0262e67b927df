"""Networks that are saved to a directory and loaded from there or from the Hugging Face Hub.

A checkpoint is ``config.json``, the arguments of the network; ``model.safetensors``; and ``README.md``, the model card.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from typing_extensions import Self

from ave.results import writing

__all__ = ["Pretrained"]

MODEL_CARD = Path(__file__).with_name("model_card.md")


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

    Unlike the mixin's own, ``from_pretrained`` never unpickles anything, refuses a checkpoint that does not fit, and
    prints nothing. ``save_pretrained`` takes ``model_card_kwargs``: ``data`` says in words what the network was trained
    on, and ``metrics`` maps the names of figures to numbers or text; lists and mappings in it are left out.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        """Load a network in evaluation mode, on the CPU and in float32.

        Args:
            pretrained_model_name_or_path: a directory that ``save_pretrained`` wrote, or else "owner/name" on the Hub.
            force_download: whether to download again what is there.
            token: of the Hub, for what is not public.
            cache_dir: where downloads are kept.
            local_files_only: whether to do without the network.
            revision: branch, tag or commit of a repository on the Hub.
            strict: whether a missing or unexpected weight is an error; a misshapen one always is.
            **model_kwargs: arguments of the network that overrule those of the checkpoint.

        Raises:
            FileNotFoundError: if there is no such directory or Hub repository, or a file of it is missing.
            OSError: if the Hub can't be reached or refuses.
            ValueError: if a file is damaged, or does not fit this network.
        """
        name = str(pretrained_model_name_or_path)
        directory = Path(name)
        if not directory.is_dir():
            directory = _download(
                name,
                force_download=force_download,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                revision=revision,
            )
        for file in (CONFIG_NAME, SAFETENSORS_SINGLE_FILE):
            if not (directory / file).is_file():
                raise FileNotFoundError(
                    f"{name} must hold {CONFIG_NAME} and {SAFETENSORS_SINGLE_FILE}, as save_pretrained writes them, "
                    f"got no {file}; pickled weights, such as pytorch_model.bin, are never read"
                )
        config_path, weights_path = directory / CONFIG_NAME, directory / SAFETENSORS_SINGLE_FILE
        config = _read_config(config_path, set(cls._hub_mixin_init_parameters) - {"self"})
        try:
            model = cls(**{**config, **model_kwargs})
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(
                f"{config_path} must hold the arguments of a {cls.__name__}, got: {_line(error)}"
            ) from error
        try:
            model.load_state_dict(load_file(weights_path), strict=strict)
        except SafetensorError as error:
            raise ValueError(f"{weights_path} must be a complete safetensors file, got: {_line(error)}") from error
        except RuntimeError as error:
            raise ValueError(
                f"{weights_path} must hold the weights of its {CONFIG_NAME}, got: {_line(error)}"
            ) from error
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        with writing(save_directory / SAFETENSORS_SINGLE_FILE) as temporary:
            temporary.write_bytes(save({name: value.contiguous() for name, value in self.state_dict().items()}))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Fill the template in with what is known of this network, and ``data`` and ``metrics`` if they are given."""
        return super().generate_model_card(*args, model=self, **kwargs)


def _download(repository: str, **options: Any) -> Path:
    """The directory of the Hub's cache that has the config and weights of a repository, and nothing else of it."""
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG_NAME, SAFETENSORS_SINGLE_FILE], **options))
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{repository} must be a directory that save_pretrained wrote, or owner/name on the Hugging Face Hub, "
            f"and is neither"
        ) from error
    except Exception as error:  # not even the base class of the Hub's errors is the same in all versions
        raise OSError(
            f"{repository} is no directory, and was not got from the Hugging Face Hub: {_line(error)}"
        ) from error


def _read_config(path: Path, expected: set[str]) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, got: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(config).__name__}")
    if unknown := sorted(set(config) - expected):
        raise ValueError(
            f"{path} must hold the arguments of the network, got unknown ones: {_line(', '.join(unknown))}"
        )
    return config


def _line(error: object) -> str:
    """Its message in one line; torch would list every single weight."""
    return textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" ...")
