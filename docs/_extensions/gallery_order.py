"""Order the guides of the gallery."""

from pathlib import Path

__all__ = ["ReadingOrder"]

GUIDES = (
    "quickstart.py",
    "swap_multihead_attention.py",
    "third_modality.py",
    "variable_lengths.py",
    "long_videos.py",
    "live_events.py",
    "who_came_first.py",
    "what_attends_to_what.py",
    "your_feature_maps.py",
    "train_on_ave.py",
    "your_videos.py",
    "authors_checkpoint.py",
    "lora_and_int8.py",
    "distributed.py",
    "export_onnx.py",
)


class ReadingOrder:
    """Sort key of sphinx-gallery: the guides in the order of ``GUIDES``, then all others by name."""

    def __init__(self, src_dir: str) -> None:
        self.src_dir = src_dir

    def __call__(self, filename: str | Path) -> tuple[int, str]:
        """Return the sort key of a script."""
        name = Path(filename).name
        return (GUIDES.index(name) if name in GUIDES else len(GUIDES), name)

    def __repr__(self) -> str:
        """Return the same text in every build. Another text would make Sphinx build all pages again."""
        return "<ReadingOrder>"
