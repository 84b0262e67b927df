"""A dataset of the user works in all subcommands: .npy files, vectors, own names, different lengths, no val split."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ave import InputError
from ave.data.batches import evaluation_loader, training_loader
from ave.data.dataset import AVE_CATEGORIES, AVEData
from ave.data.layout import FILES, needed_files
from ave.data.opening import inspect_set, read_features, read_set
from ave.data.release import Found, Problem, examine
from ave.networks.two_scores import Logits, supervised_loss
from ave.prepare import prepare_release
from ave.results.figures import draw_examples
from ave.results.metrics import measure, observe, score, segment_accuracy
from ave.results.tables import files_table
from ave.train import TrainConfig, main
from ave_release import write_annotations, write_dataset, write_release
from oracles import fill_parameters
from running import SMALL, call_main

VIDEOS, SECONDS, VIDEO_DIM, AUDIO_DIM, EXTRA = 17, 5, 11, 7, 3
CATEGORIES = ("drill", "saw", "a kettle, whistling")
WEAK = ("mil_labels", "visual_feature_noisy", "audio_feature_noisy", "labels_noisy", "lengths_noisy")


def draw_arrays(seed=0):
    """Draw the arrays of the files, with NaN at padding."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, SECONDS + 1, VIDEOS)
    lengths[0] = SECONDS
    background = len(CATEGORIES)
    category = rng.permutation(VIDEOS) % background
    label = np.where(rng.random((VIDEOS, SECONDS)) < 0.6, category[:, None], background)
    label[:, 0] = category
    label[3] = background
    one_hot = np.eye(background + 1)
    labels = one_hot[label]
    labels[rng.random((VIDEOS, SECONDS)) < 0.2] = 0
    padding = np.arange(SECONDS) >= lengths[:, None]
    labels[padding] = 0
    shown = labels[..., :-1].any((1, 2))
    arrays = {
        "visual_feature": rng.normal(size=(VIDEOS, SECONDS, VIDEO_DIM)),
        "audio_feature": rng.normal(size=(VIDEOS, SECONDS, AUDIO_DIM)),
        "labels": labels,
        "lengths": lengths,
        "mil_labels": one_hot[np.where(shown, category, background)],
        "visual_feature_noisy": rng.normal(size=(EXTRA, SECONDS, VIDEO_DIM)),
        "audio_feature_noisy": rng.normal(size=(EXTRA, SECONDS, AUDIO_DIM)),
        "labels_noisy": one_hot[[background] * EXTRA],
        "lengths_noisy": np.array([SECONDS, 3, 2]),
    }
    for name in ("visual_feature", "audio_feature"):
        arrays[name][padding] = np.nan
        arrays[f"{name}_noisy"][2, 2:] = np.inf
    order = rng.permutation(VIDEOS)
    return arrays | {"train_order": order[:11], "test_order": order[11:]}


def write_own_set(directory, arrays):
    directory.mkdir()
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array)
    (directory / "categories.txt").write_text("".join(f"{name}\n" for name in CATEGORIES))
    return directory


@pytest.fixture
def arrays():
    return draw_arrays()


@pytest.fixture
def own(tmp_path, arrays):
    return write_own_set(tmp_path / "own", arrays)


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_all_subcommands(own, tmp_path, setting, capsys):
    """From `check` to `predict`, with and without `prepare`; events end within their videos."""
    call_main("check", "--data", own, "--setting", setting)
    printed = capsys.readouterr().out
    assert "val_order.h5 is not there, so training keeps its last epoch" in printed
    assert "seconds have no label, and are left out" in printed
    call_main("prepare", "--data", own, "--output", tmp_path / "prepared", "--dtype", "float32")
    results = []
    for place in (own, tmp_path / "prepared"):
        output = tmp_path / f"run-{place.name}"
        call_main("check", "--data", place, "--setting", setting)
        options = ("--epochs", 3, "--batch-size", 5, "--lr", 0.01, "--output", output)
        drawn = place == own  # the other has the same results
        call_main("train", "--data", place, "--setting", setting, *options, draw=drawn)
        printed = capsys.readouterr().out
        assert "accuracy at the last epoch, as there is no val split" in printed
        assert "val 0" not in printed
        (trained,) = json.loads((output / "metrics.json").read_text())["runs"]
        assert (trained["chosen_epoch"], trained["chosen_by"]) == (3, "last, as there is no val split")
        assert trained["accuracy"] == trained["history"][-1]["test_accuracy"]
        assert list(trained["category_accuracy"]) == [*CATEGORIES, "background"]
        evaluation = tmp_path / f"evaluation-{place.name}"
        call_main("evaluate", "--checkpoint", output, "--data", place, "--output", evaluation, draw=drawn)
        (evaluated,) = json.loads((evaluation / "metrics.json").read_text())["runs"]
        assert evaluated["confusion"] == trained["confusion"]
        events = tmp_path / f"events-{place.name}"
        call_main("predict", "--checkpoint", output, "--features", place, "--output", events, draw=drawn)
        found = json.loads((events / "events.json").read_text())["events"]
        lengths = np.load(own / "lengths.npy")
        assert all(event["end_s"] <= lengths[event["row"]] for event in found)
        assert {event["category"] for event in found} <= set(CATEGORIES)
        results.append((trained["history"][-1]["loss"], trained["confusion"], found))
    assert results[0] == results[1]
    with pytest.raises(SystemExit):
        call_main("evaluate", "--checkpoint", output, "--data", own, "--split", "val", "--output", tmp_path / "val")
    assert "--split val needs val_order, got a dataset without it" in capsys.readouterr().err


def test_what_is_read_is_what_was_written(own, arrays, tmp_path):
    prepare_release(own, tmp_path / "prepared")
    padding = np.arange(SECONDS) >= arrays["lengths"][:, None]
    for data in (read_set(own, "weak"), read_set(tmp_path / "prepared", "weak")):
        assert data.categories == CATEGORIES
        assert data.eventless_category is None
        assert sorted(data.splits) == ["test", "train"]
        assert data.visual.shape == (VIDEOS, SECONDS, 1, 1, VIDEO_DIM)
        assert data.background_visual.shape == (EXTRA, SECONDS, 1, 1, VIDEO_DIM)
        features = data.visual[[3, 2]][:, :, 0, 0].double().numpy()[~padding[[3, 2]]]
        np.testing.assert_allclose(features, arrays["visual_feature"][[3, 2]][~padding[[3, 2]]], rtol=1e-3, atol=1e-6)
        assert torch.equal(data.lengths, torch.from_numpy(arrays["lengths"]))
        assert data.background_lengths.tolist() == [SECONDS, 3, 2]
        np.testing.assert_array_equal(data.labels, arrays["labels"])
    assert not data.visual[:].numpy()[padding].any()
    assert read_features(tmp_path / "prepared").lengths.tolist() == arrays["lengths"].tolist()


def test_digest_ignores_padding_and_knows_lengths(own, tmp_path):
    prepare_release(own, tmp_path / "prepared", "float32")
    data = read_set(own, "weak")
    assert data.digest("weak") == read_set(tmp_path / "prepared", "weak").digest("weak")
    assert data.digest("weak") != dataclasses.replace(data, background_lengths=None).digest("weak")
    assert data.digest("weak") != dataclasses.replace(data, lengths=None).digest("weak")


@pytest.mark.parametrize("setting", ["supervised", "weak"])
def test_features_and_labels_at_padding_have_no_effect(arrays, tmp_path, setting):
    """Features and labels at padding change neither the loss nor a metric."""
    results = []
    for number, filling in enumerate((np.nan, 7.0)):
        padding = np.arange(SECONDS) >= arrays["lengths"][:, None]
        changed = {name: array.copy() for name, array in arrays.items()}
        for name in ("visual_feature", "audio_feature"):
            changed[name][padding] = filling
        if number:
            changed["labels"][padding] = np.eye(len(CATEGORIES) + 1)[-1]
        data = read_set(write_own_set(tmp_path / f"set-{number}", changed), setting)
        config = TrainConfig(setting, epochs=2, batch_size=5, device="cpu", output=tmp_path / f"run-{number}")
        (metrics,) = main(config, data=data, network=SMALL, draw=False)
        results.append([metrics["confusion"], [line["loss"] for line in metrics["history"]]])
    assert results[0] == results[1]
    assert sum(map(sum, results[0][0])) == data.labels[data.splits["test"]].sum()


def test_a_padded_video_is_measured_as_if_alone(own, arrays, assert_close):
    """Loss, decisions and attention of a padded video are those of the video alone."""
    data = read_set(own)
    model = fill_parameters(SMALL(video_dim=VIDEO_DIM, audio_dim=AUDIO_DIM, categories=CATEGORIES))
    accelerator = Accelerator(cpu=True)
    data = dataclasses.replace(data, splits={**data.splits, "test": torch.arange(VIDEOS)})
    together = observe(model, evaluation_loader(data, "test", accelerator), accelerator)
    right = 0
    for row, length in enumerate(arrays["lengths"].tolist()):
        visual, audio = (array[row : row + 1][:, :length].float() for array in (data.visual, data.audio))
        labels = data.labels[row : row + 1, :length]
        short = AVEData(visual, audio, labels, {"test": torch.arange(1)}, CATEGORIES)
        if labels.any():
            alone = observe(model, evaluation_loader(short, "test", accelerator), accelerator)
            assert torch.equal(together.truth[row, :length], alone.truth[0])
            assert torch.equal(together.prediction[row, :length], alone.prediction[0])
            assert_close(together.logits["event_logits"][row, :length], alone.logits["event_logits"][0])
            relations = torch.cat([part[:length, :length] for part in together.relations[row].chunk(2, 1)], 1)
            assert_close(relations, alone.relations[0])
            right += int((alone.prediction == alone.truth).sum())
        assert (together.truth[row, length:] == -1).all()
    metrics = measure(together, data, "test")
    assert metrics["segments"] == data.labels.sum() < arrays["lengths"].sum()
    assert metrics["accuracy"] == right / metrics["segments"]
    assert segment_accuracy(model, evaluation_loader(data, "test", accelerator)) == metrics["accuracy"]
    assert metrics["background_accuracy"] == pytest.approx(float(data.labels[..., -1].sum()) / metrics["segments"])
    assert draw_examples(together, data, "test", "own").keys() == {"timelines.png", "attention.png"}


def test_batches_have_the_masks_of_their_videos(own, arrays):
    data = read_set(own, "weak")
    lengths = [*arrays["lengths"], *arrays["lengths_noisy"]]
    features = np.concatenate([arrays["audio_feature"], arrays["audio_feature_noisy"]])[:, 0].astype(np.float32)
    seen = 0
    for batch in training_loader(data, "weak", Accelerator(cpu=True), batch_size=5, seed=0):
        for audio, mask in zip(batch.audio[:, 0].numpy(), batch.padding_mask, strict=True):
            (row,) = np.flatnonzero((features == audio).all(1))
            assert mask.tolist() == [second >= lengths[row] for second in range(SECONDS)]
            seen += 1
    assert seen == 11 + EXTRA


def test_unlabeled_seconds_weigh_nothing_in_the_loss(draw, assert_close):
    """The event loss is averaged over labeled seconds, the category loss over videos that have some."""
    event_logits, category_logits = draw(3, 5).requires_grad_(), draw(3, 3).requires_grad_()
    labels = torch.nn.functional.one_hot(torch.tensor([[2, 3, 2, 3, 3], [1, 1, 1, 3, 3], [0, 0, 0, 0, 0]]), 4).double()
    labels[0, [0, 3]], labels[2] = 0, 0
    loss = supervised_loss(Logits(event_logits, category_logits), labels)
    labeled = labels.any(-1)
    event = torch.nn.functional.binary_cross_entropy_with_logits(
        event_logits[labeled], labels[labeled][:, :-1].amax(-1)
    )
    category = torch.nn.functional.cross_entropy(category_logits[:2], torch.tensor([2, 1]))
    assert_close(loss, event + category)
    gradient, of_category = torch.autograd.grad(loss, [event_logits, category_logits])
    assert not gradient[~labeled].any()
    assert gradient[labeled].all()
    assert not of_category[2].any()
    nothing = supervised_loss(Logits(event_logits, category_logits), torch.zeros_like(labels))
    assert nothing == 0
    assert all(part.isfinite().all() for part in torch.autograd.grad(nothing, [event_logits, category_logits]))


def test_only_in_ave_a_video_without_event_counts_as_category_0(draw, assert_close):
    logits = Logits(draw(2, 5), draw(2, 3))
    labels = torch.nn.functional.one_hot(torch.tensor([[2, 3, 2, 3, 3], [3, 3, 3, 3, 3]]), 4).double()
    difference = supervised_loss(logits, labels) - supervised_loss(logits, labels, eventless_category=None)
    terms = torch.nn.functional.cross_entropy(logits.category, torch.tensor([2, 0]), reduction="none")
    assert_close(difference, terms.mean() - terms[0])


def test_seconds_without_a_label_count_in_no_metric():
    generator = torch.Generator().manual_seed(0)
    truth, prediction = torch.randint(0, 4, (2, 7, 5), generator=generator)
    seen = torch.arange(7) % 3 == 0
    truth[:, 3:] = -1
    expected = score(truth[:, :3], prediction[:, :3], CATEGORIES, seen)
    assert score(truth, prediction, CATEGORIES, seen) == expected
    assert expected["segments"] == 21


def test_what_is_ave(tmp_path, release):
    """A dataset is AVE by its 4,143 rows and 29 columns, unless its names differ, or by its manifest."""
    ave = Found({}, sizes={"N": (4143, tmp_path), "L": (29, tmp_path)})
    assert ave.is_ave
    assert dataclasses.replace(ave, categories=AVE_CATEGORIES).is_ave
    assert not dataclasses.replace(ave, categories=AVE_CATEGORIES[::-1]).is_ave
    assert not dataclasses.replace(ave, sizes={"N": (4142, tmp_path), "L": (29, tmp_path)}).is_ave
    manifest = prepare_release(release, tmp_path / "prepared")
    assert manifest.ave is False
    data = read_set(tmp_path / "prepared")
    assert data.categories[:2] == ("0", "1")
    assert data.eventless_category is None
    (tmp_path / "prepared" / "prepared.json").write_text(json.dumps({**dataclasses.asdict(manifest), "ave": True}))
    data = read_set(tmp_path / "prepared")
    assert (data.categories, data.eventless_category) == (AVE_CATEGORIES, 0)


def test_names_that_come_later_are_prepared(own, tmp_path):
    text = (own / "categories.txt").read_text()
    (own / "categories.txt").unlink()
    prepare_release(own, tmp_path / "prepared")
    assert read_set(tmp_path / "prepared").categories == ("0", "1", "2")
    (own / "categories.txt").write_text(text)
    prepare_release(own, tmp_path / "prepared")
    assert read_set(tmp_path / "prepared").categories == CATEGORIES


def change(name, values):
    return lambda place, arrays: np.save(place / f"{name}.npy", values(arrays))


def background_first(arrays):
    return np.roll(arrays["labels"], 1, -1)


FAULTS = {
    "names too many": (
        lambda place, _: (place / "categories.txt").write_text("drill\nsaw\nkettle\nbackground\n"),
        "categories.txt",
        "must hold 3 different names, one per line .* without background, got 4 lines with 3 such names",
    ),
    "names twice": (
        lambda place, _: (place / "categories.txt").write_text("drill\nsaw\nsaw\n"),
        "categories.txt",
        "got 3 lines with 2 such names",
    ),
    "names binary": (
        lambda place, _: (place / "categories.txt").write_bytes(b"\xff\xfe\x00"),
        "categories.txt",
        "must be text in utf-8",
    ),
    "two forms": (
        lambda place, arrays: write_dataset(place / "labels.h5", arrays["labels"]),
        "labels",
        r"labels\.h5 and labels\.npy must not both exist",
    ),
    "length 0": (
        change("lengths", lambda arrays: arrays["lengths"] * 0),
        "lengths",
        "must hold the seconds of each video, from 1 to 5, got 0 to 0",
    ),
    "too long": (
        change("lengths_noisy", lambda _: np.array([1, 2, 6])),
        "lengths_noisy",
        "from 1 to 5, got 1 to 6",
    ),
    "float lengths": (
        change("lengths", lambda arrays: arrays["lengths"] / 1),
        "lengths",
        "must hold integers, the seconds of each video, got float64",
    ),
    "few lengths": (change("lengths", lambda arrays: arrays["lengths"][1:]), "lengths", "must have the shape"),
    "more features than lengths": (
        change("audio_feature", lambda arrays: np.repeat(arrays["audio_feature"], 2, 0)),
        "audio_feature",
        "34 videos where labels",
    ),
    "NaN in a video": (
        change("visual_feature", lambda arrays: np.where(arrays["visual_feature"] > 0, np.nan, 1)),
        "visual_feature",
        "must hold finite features",
    ),
    "zeros in a video, not in its padding": (
        change("audio_feature", lambda arrays: arrays["audio_feature"] * (arrays["lengths"] > 2)[:, None, None]),
        "audio_feature",
        "must hold features of every video, got ",
    ),
    "background first": (
        change("labels", background_first),
        "labels",
        "must hold one category for each video.*; all of these have column 0: if that is background, move it to",
    ),
    "two categories": (
        change("labels", lambda _: np.eye(4)[np.tile([0, 1, 3, 3, 3], (VIDEOS, 1))]),
        "labels",
        "must hold one category for each video, .* got several in 17 of 17 videos, for example row 0",
    ),
    "no labels": (
        change(
            "labels", lambda arrays: arrays["labels"] * np.isin(np.arange(VIDEOS), arrays["train_order"])[:, None, None]
        ),
        "labels",
        "must hold labels of test, got none for its 6 videos",
    ),
    "another video label": (
        change("mil_labels", lambda arrays: np.roll(arrays["mil_labels"], 1, 0)),
        "mil_labels",
        r"must hold the category of the seconds in labels\.npy, got other labels in \d+ of 17 videos, for example row",
    ),
    "events in background videos": (
        change("labels_noisy", lambda _: np.eye(4)[[3, 1, 3]]),
        "labels_noisy",
        "must hold only background, the last column, got other labels in 1 of 3 videos, for example row 1",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_named(own, arrays, kind):
    fault, name, message = FAULTS[kind]
    fault(own, arrays)
    found = inspect_set(own, "weak")
    messages = [problem.message for problem in found.problems if problem.file == name]
    assert messages
    with pytest.raises(ValueError, match=message):
        raise ValueError("; ".join(messages))
    assert f"\nwrong: {messages[0]}" in files_table(found)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (None, None),
        ("category", r"must agree with labels\.h5, line by line, got other categories in \d+ of 23 videos"),
        ("order", r"must agree with labels\.h5, line by line, got other seconds of the event in \d+ of 23 videos"),
        ("fractions", "must hold whole seconds as start and end"),
    ],
)
def test_annotations_are_compared(tmp_path, kind, message):
    release = tmp_path / "release"
    release.mkdir()
    arrays = write_release(release)
    (release / "categories.txt").write_text("\n".join(AVE_CATEGORIES))
    write_annotations(release, map(str, range(23)))
    path = release / "Annotations.txt"
    category = arrays["mil_labels"].argmax(-1)
    lines = [
        line.replace("Flûte", AVE_CATEGORIES[number])
        for line, number in zip(path.read_text("utf-8").splitlines(), category, strict=True)
    ]
    if kind == "category":
        lines = [line.replace(AVE_CATEGORIES[category[3]], "Bell") for line in lines]
    elif kind == "order":
        spans = [line.split("&")[3:] for line in lines]
        lines = [
            "&".join([*line.split("&")[:3], *span]) for line, span in zip(lines, spans[1:] + spans[:1], strict=True)
        ]
    elif kind == "fractions":
        lines[3] += ".5"
    path.write_text("\n".join(lines), "utf-8")
    messages = [problem.message for problem in inspect_set(release, "weak").problems]
    assert len(messages) == (kind is not None)
    if messages:
        with pytest.raises(ValueError, match=message):
            raise ValueError(messages[0])


def test_only_ave_needs_a_val_split(release):
    (release / "val_order.h5").unlink()
    assert sorted(read_set(release).splits) == ["test", "train"]
    assert "5 videos are in no split" in " ".join(inspect_set(release).remarks)
    found = Found({file.name: release / f"{file.name}.h5" for file in FILES}, declared_ave=True)
    missing = {file.name: Problem(file.name, "", "missing") for file in FILES if not found.paths[file.name].exists()}
    examine(found, needed_files("supervised"), FILES, missing)
    assert [(problem.file, problem.verdict) for problem in found.problems] == [("val_order", "missing")]


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({"milestones": (1, 3), "lr_decay": 0.25}, [8, 2, 2, 0.5]),
        ({"milestones": ()}, [8, 8, 8, 8]),
        ({"milestones": (2,)}, [8, 8, 4, 4]),
    ],
)
def test_the_schedule_is_an_option(own, tmp_path, options, rates):
    config = TrainConfig(epochs=4, lr=8e-3, batch_size=11, device="cpu", output=tmp_path / "run", **options)
    (metrics,) = main(config, data=read_set(own), network=SMALL, draw=False)
    assert [line["learning_rate"] * 1e3 for line in metrics["history"]] == pytest.approx(rates)
    going_on = TrainConfig(epochs=5, lr=8e-3, batch_size=11, device="cpu", resume=tmp_path / "run", **options)
    (metrics,) = main(going_on, data=read_set(own), network=SMALL, draw=False)
    assert len(metrics["history"]) == 5
    resumed = TrainConfig(epochs=5, lr=8e-3, batch_size=11, device="cpu", resume=tmp_path / "run", milestones=(4,))
    with pytest.raises(InputError, match=r"--milestones must be .*: leave it out"):
        main(resumed, data=read_set(own), network=SMALL, draw=False)


def test_an_npz_may_hold_vectors(own, arrays, tmp_path):
    """The events of an .npz with vectors, of several videos or of one, are those of the directory."""
    model = SMALL(video_dim=VIDEO_DIM, audio_dim=AUDIO_DIM, categories=CATEGORIES)
    with torch.no_grad():
        model.event_head.bias.fill_(0.1)
    model.save_pretrained(tmp_path / "model")
    features = {"visual": arrays["visual_feature"], "audio": arrays["audio_feature"]}
    np.savez(tmp_path / "all.npz", **features, lengths=arrays["lengths"])
    np.savez(tmp_path / "one.npz", **{name: array[0] for name, array in features.items()})
    events = {}
    for place in (own, tmp_path / "all.npz", tmp_path / "one.npz"):
        output = tmp_path / f"events-{place.stem}"
        call_main("predict", "--checkpoint", tmp_path / "model", "--features", place, "--output", output, draw=False)
        events[place.stem] = json.loads((output / "events.json").read_text())["events"]
    assert events["own"] == events["all"]
    assert [event for event in events["all"] if event["row"] == 0] == events["one"]
    assert events["one"]
