"""A directory in the layout of the AVE release."""

import h5py
import numpy as np

SHAPE = {"videos": 23, "segments": 5, "height": 3, "width": 2, "video_dim": 11, "audio_dim": 7, "extra": 3}
COLUMNS = 29


def write_dataset(path, array, name="avadataset"):
    with h5py.File(path, "w") as file:
        file[name] = array


def write_annotations(directory, names, header="", category="Flûte", encoding="utf-8", newline="\n"):
    """Write annotations of the first videos that agree with their labels."""
    with h5py.File(directory / "labels.h5") as file:
        event = file["avadataset"][:, :, :-1].any(-1)
    spans = [(row.argmax(), len(row) - row[::-1].argmax()) if row.any() else (0, 0) for row in event]
    lines = [f"{category}&{name}&good&{start}&{end}\n" for name, (start, end) in zip(names, spans, strict=False)]
    (directory / "Annotations.txt").write_text(header + "".join(lines), encoding, newline=newline)


def write_release(directory, seed=0):
    """Write a small, complete release: every array of a release, with random features and one-hot labels."""
    rng = np.random.default_rng(seed)
    videos, segments, height, width, video_dim, audio_dim, extra = SHAPE.values()
    category = rng.integers(0, COLUMNS - 1, videos)
    event = rng.random((videos, segments)) < 0.7
    one_hot = np.eye(COLUMNS, dtype=np.float32)
    order = rng.permutation(videos)
    arrays = {
        "visual_feature": rng.random((videos, segments, height, width, video_dim)),
        "audio_feature": rng.random((videos, segments, audio_dim)),
        "labels": one_hot[np.where(event, category[:, None], COLUMNS - 1)],
        "mil_labels": one_hot[category],
        "visual_feature_noisy": rng.random((extra, segments, height, width, video_dim)),
        "audio_feature_noisy": rng.random((extra, segments, audio_dim)),
        "labels_noisy": one_hot[np.full(extra, COLUMNS - 1)],
    }
    for name, array in arrays.items():
        write_dataset(directory / f"{name}.h5", array)
    for split, rows in {"train": order[:13], "val": order[13:18], "test": order[18:]}.items():
        write_dataset(directory / f"{split}_order.h5", rows, "order")
    return arrays
