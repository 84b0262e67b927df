"""Batches: every video once, in an order that only seed and epoch decide, for every cache and process count."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ave.data.arrays import StoredArray
from ave.data.batches import Share, cache_features, derive_seed, evaluation_loader, training_loader
from ave.data.dataset import AVEData

TRAIN, TEST, EXTRA = 13, 7, 3


def processes(number, device="cpu"):
    """Return the parts of an Accelerator that the loaders use, one for each process."""
    return [
        SimpleNamespace(
            process_index=index, num_processes=number, device=torch.device(device), is_main_process=index == 0
        )
        for index in range(number)
    ]


def make_data(place=None):
    """Make a dataset, in memory or in files. Features are the row of the video, negative for background videos."""
    videos = TRAIN + TEST
    rows = torch.arange(videos, dtype=torch.float16)
    extra = -1 - torch.arange(EXTRA, dtype=torch.float16)
    arrays = {
        "visual": rows.view(-1, 1, 1, 1, 1).expand(videos, 5, 2, 3, 11).contiguous(),
        "audio": rows.view(-1, 1, 1).expand(videos, 5, 7).contiguous(),
        "background_visual": extra.view(-1, 1, 1, 1, 1).expand(EXTRA, 5, 2, 3, 11).contiguous(),
        "background_audio": extra.view(-1, 1, 1).expand(EXTRA, 5, 7).contiguous(),
    }
    if place is not None:
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array.numpy())
            arrays[name] = StoredArray(place / f"{name}.npy")
    order = torch.randperm(videos, generator=torch.Generator().manual_seed(0))
    return AVEData(
        labels=rows.float().view(-1, 1, 1).expand(videos, 5, 29).contiguous(),
        splits={"train": order[:TRAIN], "val": order[:1], "test": order[TRAIN:]},
        categories=tuple("abc"),
        video_labels=rows.float().view(-1, 1).expand(videos, 29).contiguous(),
        background_labels=extra.float().view(-1, 1).expand(EXTRA, 29).contiguous(),
        **arrays,
    )


def steps(data, setting, accelerator, batch_size=5, seed=0, epoch=1, workers=0):
    """Return the rows and the weight of each batch in an epoch."""
    loader = training_loader(data, setting, accelerator, batch_size=batch_size, seed=seed, workers=workers)
    loader.shares.epoch = epoch
    seen = []
    for video, audio, target, weight, mask in loader:
        assert mask is None
        assert video.dtype == audio.dtype == torch.float32
        rows = video[:, 0, 0, 0, 0]
        assert torch.equal(rows, audio[:, 0, 0])
        assert torch.equal(rows, target.flatten(1)[:, 0])
        seen.append((rows.tolist(), weight))
    return seen


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_an_epoch_has_every_video_once(setting):
    data = make_data()
    rows = [row for step, weight in steps(data, setting, *processes(1)) for row in step if weight == 1]
    expected = data.splits["train"].tolist() + ([-1, -2, -3] if setting == "weak" else [])
    assert sorted(rows) == sorted(expected)


@pytest.mark.parametrize("number", [2, 3, 7])
@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_processes_share_the_batches_of_one(number, setting):
    """The weighted mean of the processes' mean losses is the mean over the batch, also for an incomplete batch."""
    data = make_data()
    alone = steps(data, setting, *processes(1))
    shared = [steps(data, setting, process) for process in processes(number)]
    assert {len(own) for own in shared} == {len(alone)}
    for step, (rows, _) in enumerate(alone):
        shares = [own[step] for own in shared]
        assert sorted(row for own, weight in shares if weight for row in own) == sorted(rows)
        mean = sum(weight * np.mean(own) for own, weight in shares) / number
        assert mean == pytest.approx(np.mean(rows))


def test_without_a_seed_the_order_stays_and_the_rest_is_dropped():
    """As in AVEL's code, 13 videos give three batches of 4, and each process takes its share of each."""
    taken = []
    for process in processes(2):
        loader = training_loader(make_data(), "supervised", process, batch_size=4, seed=None)
        loader.shares.epoch = 2
        taken.append([share.positions for share in loader.shares])
    assert taken == [[[0, 2], [4, 6], [8, 10]], [[1, 3], [5, 7], [9, 11]]]
    for batch_size in (1, 14):
        with pytest.raises(ValueError, match=rf"--batch-size must be from 2 to 13 with --as-published.*{batch_size}$"):
            training_loader(make_data(), "supervised", processes(2)[0], batch_size=batch_size, seed=None)


def test_the_order_changes_with_seed_and_epoch_alone():
    data = make_data()
    orders = {
        (seed, epoch): str(steps(data, "weak", *processes(1), seed=seed, epoch=epoch))
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len(set(orders.values())) == 4
    torch.rand(3)  # other random draws change nothing
    assert str(steps(data, "weak", *processes(1), seed=1, epoch=2)) == orders[1, 2]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_files_and_memory_give_the_same_batches(setting, workers, tmp_path):
    """Two epochs give the same batches from files as from memory, and no random number is drawn."""
    loaders = [
        training_loader(make_data(place), setting, *processes(1), batch_size=5, seed=0, workers=workers)
        for place in (None, tmp_path)
    ]
    before = torch.get_rng_state()
    for epoch in (1, 2):
        for loader in loaders:
            loader.shares.epoch = epoch
        for memory, disk in zip(*loaders, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(memory[:3], disk[:3], strict=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_evaluation_takes_every_video_once_in_order(number):
    data = make_data()
    rows = [
        [row for batch in evaluation_loader(data, "test", process) for row in batch.video[:, 0, 0, 0, 0].tolist()]
        for process in processes(number)
    ]
    test = data.splits["test"].tolist()
    assert rows == [test[index::number] for index in range(number)]


def test_evaluation_needs_a_video_for_each_process():
    with pytest.raises(ValueError, match="test must have a video for each of 8 processes, got 7"):
        evaluation_loader(make_data(), "test", processes(8)[0])


@pytest.mark.parametrize("cache", ["auto", "device", "memory", "disk"])
def test_the_cache_holds_what_the_files_hold(cache, tmp_path):
    data, done = cache_features(make_data(tmp_path), cache, *processes(1), "weak")
    stays = isinstance(data.visual, StoredArray)
    assert stays == (cache == "disk")
    assert ("stay on disk" if stays else "in memory") in done
    expected = make_data()
    for name in ("visual", "audio", "background_visual", "background_audio"):
        cached = getattr(data, name)[:]
        assert cached.dtype == torch.float16
        assert torch.equal(cached, getattr(expected, name))


def test_float64_is_kept_as_float32(tmp_path):
    """float64 features are cached as float32, which is all that the network uses."""
    np.save(tmp_path / "visual.npy", np.full((TRAIN + TEST, 5, 2, 3, 11), 1 / 3))
    data = make_data()
    wide = AVEData(**{**vars(data), "visual": StoredArray(tmp_path / "visual.npy")})
    cached, _ = cache_features(wide, "memory", *processes(1), "supervised")
    assert cached.visual.dtype == torch.float32
    for share in (wide, cached):
        batch = next(iter(training_loader(share, "supervised", *processes(1), batch_size=5, seed=0, workers=0)))
        assert (batch.video == torch.tensor(1 / 3)).all()


def test_features_in_memory_stay_in_memory():
    data = make_data()
    cached, done = cache_features(data, "disk", *processes(1), "weak")
    assert cached.visual is data.visual
    assert "in memory" in done


def test_too_little_memory_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    data = make_data(tmp_path)
    assert isinstance(cache_features(data, "auto", *processes(1), "weak")[0].visual, StoredArray)
    with pytest.raises(ValueError, match=r"--cache memory needs .* use --cache disk"):
        cache_features(data, "memory", *processes(1), "weak")


def test_weak_needs_its_data():
    data = AVEData(**{**vars(make_data()), "video_labels": None})
    with pytest.raises(ValueError, match="data must hold video labels for the weak setting"):
        training_loader(data, "weak", *processes(1), batch_size=5, seed=0, workers=0)


def test_a_share_is_a_sample():
    """Positions in a share count the videos of the split, not the rows of the arrays."""
    data = make_data()
    loader = evaluation_loader(data, "test", *processes(1))
    batch = loader.videos[Share([4, 2], 1.0)]
    assert batch.video[:, 0, 0, 0, 0].tolist() == data.splits["test"][[4, 2]].tolist()


def test_derived_seeds_differ():
    """Different parts give different seeds, such as those of the shuffling and of the dropout."""
    seeds = {derive_seed(seed, epoch, process) for seed in range(5) for epoch in range(7) for process in range(3)}
    seeds |= {derive_seed(seed, epoch) for seed in range(5) for epoch in range(7)}
    assert len(seeds) == 5 * 7 * 4
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(2**32 - 1, 200, 3) == derive_seed(2**32 - 1, 200, 3)
