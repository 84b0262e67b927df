"""Fixtures: tolerances, seeded random tensors, all layers, a small CMRAN, a small release and processes."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from ave.networks.cmran import CMRAN
from ave_release import write_release
from oracles import CASES, Case, make_cmran

# Every run uses the same examples, without a time limit. A test may set another number of examples.
settings.register_profile(
    "tests",
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("tests")

TOLERANCES = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 1e-2, "atol": 1e-2},
    torch.bfloat16: {"rtol": 5e-2, "atol": 5e-2},
}
"""The tolerance of each dtype. No test uses a larger tolerance."""


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Return a function that draws normal tensors from one seeded generator."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Return a function that compares tensors, or sequences or dicts of them, within the tolerance of ``dtype``."""

    def assert_close(actual: Any, expected: Any, dtype: torch.dtype | None = None) -> None:
        leaves = torch.utils._pytree.tree_leaves(expected)
        tolerance = TOLERANCES[dtype or next(leaf.dtype for leaf in leaves if leaf is not None)]
        torch.testing.assert_close(actual, expected, check_dtype=dtype is None, **tolerance)

    return assert_close


@pytest.fixture(params=[pytest.param(case, id=name) for name, case in CASES.items()])
def case(request: pytest.FixtureRequest) -> Case:
    """Return each layer in each configuration."""
    return request.param


@pytest.fixture(params=[pytest.param(case, id=name) for name, case in CASES.items() if case.masked])
def masked_case(request: pytest.FixtureRequest) -> Case:
    """Return each layer that takes padding masks."""
    return request.param


@pytest.fixture(params=["supervised", "weak"])
def setting(request: pytest.FixtureRequest) -> str:
    """Return each setting of CMRAN."""
    return request.param


@pytest.fixture
def cmran(setting: str) -> CMRAN:
    """Return a small CMRAN in float64 with 11 visual and 7 audio channels and 5 categories, without dropout."""
    return make_cmran(setting)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Write a small release of random features, complete except for the annotations."""
    directory = tmp_path / "release"
    directory.mkdir()
    write_release(directory)
    return directory


@pytest.fixture(scope="session")
def processes() -> BaseContext:
    """Return a context that forks processes from a server, where torch and other slow imports are done once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "accelerate",
            "ave_cmran",
            "h5py",
            "huggingface_hub",
            "matplotlib.pyplot",
            "pytest",
            "torch._dynamo",  # imported by optimizers
            "torchmetrics.classification",
            "tests.frozen",  # the last
        ]
    )
    return context


@pytest.fixture
def ave_files() -> Path:
    """Return the directory with the small files of the AVE release."""
    place = os.environ.get("CROSSMODAL_ATTN_DATA")
    if not place:
        pytest.skip("CROSSMODAL_ATTN_DATA does not name a directory with ave/, the files of the AVE release")
    return Path(place) / "ave"


@pytest.fixture
def real_release(ave_files: Path, tmp_path: Path) -> Path:
    """Make a release with real labels, orders and background audio, and with feature files that take no disk space.

    The features of the 4,143 videos are never written. The features of the background videos are all 1.
    """
    for path in [*ave_files.glob("*.h5"), ave_files / "Annotations.txt"]:
        (tmp_path / path.name).symlink_to(path)
    for name, shape in {
        "visual_feature": (4143, 10, 7, 7, 512),
        "audio_feature": (4143, 10, 128),
        "visual_feature_noisy": (178, 10, 7, 7, 512),
    }.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            # Chunks that are never written are not stored, and read as the fill value.
            fill = float(name.endswith("noisy"))
            file.create_dataset("avadataset", shape, "f8", chunks=(1, *shape[1:]), fillvalue=fill)
    return tmp_path
