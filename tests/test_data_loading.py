"""The data loading benchmark measures all ways on a tiny dataset, and removes the dataset."""

import json
import os
import tempfile

import pytest
import torch

from benchmarks import data_loading


@pytest.fixture
def disk(tmp_path):
    """Return a directory on a disk, whose files can be dropped from the page cache."""
    path = tmp_path / "forgotten"
    path.write_bytes(bytes(1 << 20))
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("the system has no posix_fadvise")
    data_loading.forget(path)
    if data_loading.resident_share(path) == 1:
        pytest.skip("the temporary directory is in memory")
    return tmp_path


def test_every_way_is_measured(disk, monkeypatch, capsys):
    temporary = disk / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    output = disk / "results" / "data_loading.json"
    data_loading.main(["--videos", "7", "--batch-size", "3", "--repeats", "2", "--output", str(output)])
    results = json.loads(output.read_text())
    table = capsys.readouterr().out
    assert len(results["samples_per_second"]) == 6
    for name, states in results["samples_per_second"].items():
        assert name in table
        for values in states.values():
            assert len(values["all"]) == 2
            assert 0 < min(values["all"]) <= values["median"] <= max(values["all"])
    assert results["bytes_before"] > 7 * 10 * 7 * 7 * 512 * 8
    assert results["bytes_after"] == 7 * 10 * 7 * 7 * 512 * 2 + 128
    assert list(temporary.iterdir()) == []


def test_ways_give_the_same_batches(tmp_path, assert_close):
    for layout in data_loading.LAYOUTS:
        (tmp_path / layout).mkdir()
        data_loading.write_set(tmp_path / layout, 5, layout)
    data_loading.prepare_release(tmp_path / "chunked", tmp_path / "prepared")
    expected = data_loading.RowByRow(tmp_path / "contiguous")([3, 0, 4])
    assert expected[0].min() == 0
    assert 0.7 < (expected[0] == 0).double().mean() < 0.8
    for batch in (
        data_loading.RowByRow(tmp_path / "chunked")([3, 0, 4]),
        data_loading.ByDataset(tmp_path / "contiguous")([3, 0, 4]),
    ):
        assert_close(batch, expected)
    for stored in data_loading.AsStored(tmp_path / "prepared")([3, 0, 4]):
        assert stored.dtype == torch.float16
    for rounded, features in zip(data_loading.ByDataset(tmp_path / "prepared")([3, 0, 4]), expected, strict=True):
        assert_close(rounded, features.half().float(), expected[0].dtype)


def test_page_cache_is_seen_and_dropped(disk):
    path = disk / "file"
    path.write_bytes(bytes(1 << 20))
    data_loading.forget(path)
    assert data_loading.resident_share(path) == 0
    path.read_bytes()
    assert data_loading.resident_share(path) == 1
