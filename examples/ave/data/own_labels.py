"""Label the videos of a dataset by the lines of a text file: which label each second has, and which split each video.

Axes: N videos, T segments of a second, K categories.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ave.data.dataset import SPLITS, AVEData, RowView, Split
from ave.data.label_lines import UNSURE, Line, read_lines
from ave.data.splitting import DEFAULT_SPLIT, split_videos
from ave.printing import printable

__all__ = ["OwnLabels"]


@dataclass(frozen=True)
class OwnLabels:
    """The content of a file of labels, such as labels.csv."""

    path: Path
    lines: tuple[Line, ...]
    unused: tuple[str, ...] = ()
    """The columns that are ignored."""

    @classmethod
    def read(cls, path: Path) -> OwnLabels:
        """Read a file of labels, and check each line.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if the file is not CSV in UTF-8, a column is missing, or a line is wrong.
        """
        return cls(path, *read_lines(path))

    @property
    def has_splits(self) -> bool:
        """Whether the file has a column `split`."""
        return any(line.split for line in self.lines)

    def apply(
        self,
        data: AVEData,
        split: str | None = None,
        categories: Sequence[str] | None = None,
        say: Callable[[str], object] = lambda _: None,
        needed: Collection[Split] = ("train", "test"),
        *,
        split_seed: int | None = None,
    ) -> AVEData:
        """Return a dataset with these labels and splits. Its own labels, splits and background videos are left out.

        A second has an event if the middle of the second is in it: start <= second + 0.5 < end. If an event is so short
        that it covers the middle of no second, it gets the second that contains the middle of the event. Seconds of the
        category "?" have no label. All others are background. A video with K categories has K rows: its own, and K - 1
        at the end of the dataset. In each of them, the events of the other categories have no label. A video that is
        not in the file has no label, and is in no split.

        Args:
            data: the dataset. Videos without names are called by their row numbers.
            split: the shares of train, val and test in percent, as in "70/15/15", for a file without splits.
            categories: the names of the categories in their order. Default: those of the file, sorted.
            say: called with each remark.
            needed: the splits that must have videos.
            split_seed: the seed of the division into these shares. Default: 0.

        Raises:
            ValueError: if a line does not fit the dataset, or a needed split would have no video.
        """
        if self.unused:
            say(f"columns that are not used: {', '.join(self.unused)}")
        rows = self._find_rows(data)
        events = self._collect(data, rows, say)
        names = tuple(sorted({line.category for line in self.lines} - {"", UNSURE}))
        if categories is not None:
            for line in self.lines:
                if line.category not in ("", UNSURE, *categories):
                    raise self._wrong(line, f"category must be one of the network, {_some(categories)}", line.category)
            names = tuple(categories)
        shown = {row: sorted(own.keys() - {UNSURE}) for row, own in events.items()}
        splits = self._find_splits(rows, shown, data, (split, split_seed), needed)

        # ---- A row for each category of each video ----
        seconds, background = data.audio.shape[1], len(names)
        extra = [(row, category) for row, own in shown.items() for category in own[1:]]
        owners = torch.cat([torch.arange(len(data.audio)), torch.tensor([row for row, _ in extra], dtype=torch.int64)])
        labels = torch.zeros(len(owners), seconds, background + 1)
        video_labels = torch.zeros(len(owners), background + 1)
        firsts = [(row, row, own[0] if own else None) for row, own in shown.items()]
        lasts = [(len(data.audio) + place, row, category) for place, (row, category) in enumerate(extra)]
        for place, row, category in [*firsts, *lasts]:
            label = background if category is None else names.index(category)
            video_labels[place, label] = 1
            labels[place, : _length(data, row), background] = 1
            # Where events overlap, that of the row's own category counts; but unsure seconds have no label at all.
            for kind in sorted(events[row], key=lambda kind: (kind == UNSURE, kind == category)):
                for first, end in events[row][kind]:
                    labels[place, first:end] = 0
                    labels[place, first:end, label] = kind == category

        self._remark(data, rows, shown, splits, say)
        members = {
            name: [place for place, row in enumerate(owners.tolist()) if splits.get(row) == name] for name in SPLITS
        }
        return replace(
            data,
            visual=RowView(data.visual, owners) if extra else data.visual,
            audio=RowView(data.audio, owners) if extra else data.audio,
            labels=labels,
            splits={name: torch.tensor(own) for name, own in members.items() if own},
            categories=names,
            names=None if data.names is None else tuple(data.names[row] for row in owners.tolist()),
            video_labels=video_labels,
            background_visual=None,
            background_audio=None,
            background_labels=None,
            background_lengths=None,
            object_cells=None,
            decoy_cells=None,
            lengths=None if data.lengths is None else data.lengths[owners],
            eventless_category=None,
            is_ave=False,
        )

    def with_splits(self, data: AVEData) -> list[dict[str, object]]:
        """Return the lines with the splits of a dataset that has these labels, as rows for a CSV file.

        Args:
            data: the return value of :meth:`apply`.
        """
        names = list(map(str, range(len(data.labels)))) if data.names is None else data.names
        split_of = {names[row]: split for split, rows in data.splits.items() for row in rows.tolist()}
        return [
            {
                "video": line.video,
                "start": line.start if line.category else None,
                "end": line.end if line.category else None,
                "category": line.category or None,
                "split": split_of.get(line.video) or split_of[Path(line.video).stem],
            }
            for line in self.lines
        ]

    def _find_rows(self, data: AVEData) -> dict[str, int]:
        """Find the row of each video. A name in the file may have a directory and a suffix that the dataset's lacks."""
        known = tuple(map(str, range(len(data.audio)))) if data.names is None else data.names
        rows = {name: row for row, name in reversed([*enumerate(known)])}
        counts, found, owners = Counter(known), dict[str, int](), dict[int, str]()
        for line in self.lines:
            name = line.video if line.video in rows else Path(line.video).stem
            if name not in rows:
                raise self._wrong(line, f"video must be one of the dataset, {_some(known)}", line.video)
            if counts[name] > 1:
                raise self._wrong(
                    line, "video must be the name of one video", f"{line.video}, of {counts[name]} videos"
                )
            row = rows[name]
            if owners.setdefault(row, line.video) != line.video:
                raise self._wrong(line, f"video must have the same name in all lines, {owners[row]}", line.video)
            found[line.video] = row
        return found

    def _collect(
        self, data: AVEData, rows: Mapping[str, int], say: Callable[[str], object]
    ) -> dict[int, dict[str, list[tuple[int, int]]]]:
        """Return the seconds of all events by row and category, from the first to the end, exclusive."""
        events: dict[int, dict[str, list[tuple[int, int]]]] = {}
        earlier: defaultdict[int, list[Line]] = defaultdict(list)
        joined, shared = list[tuple[int, int]](), list[tuple[int, int]]()
        for line in self.lines:
            row = rows[line.video]
            others = earlier[row]
            if any(not (line.category and other.category) for other in others):
                came = f"{line.video}, which line {others[0].number} lists, too"
                raise self._wrong(line, "a video without events must have one line, without others", came)
            others.append(line)
            spans = events.setdefault(row, {})
            if not line.category:
                continue
            length = _length(data, row)
            if line.start >= length + 0.5 or line.end >= length + 1:
                came = f"{line.start:g} to {line.end:g}"
                raise self._wrong(line, f"the event must be in the {length} s of {line.video}", came)
            spans.setdefault(line.category, []).append(_round(line.start, line.end, length))
            for other in others[:-1]:
                if UNSURE not in (line.category, other.category) and line.start < other.end and other.start < line.end:
                    (joined if line.category == other.category else shared).append((other.number, line.number))
        for pairs, what in ((joined, "of one category that are joined"), (shared, "of two categories that overlap")):
            if pairs:
                first, second = pairs[0]
                say(f"pairs of events {what}: {len(pairs)}, for example lines {first} and {second}")
        return events

    def _find_splits(
        self,
        rows: Mapping[str, int],
        shown: Mapping[int, Sequence[str]],
        data: AVEData,
        wanted: tuple[str | None, int | None],
        needed: Collection[Split],
    ) -> dict[int, str]:
        """Return the split of each row that has labels: that in the file, or by the wanted shares and seed."""
        splits: dict[int, str] = {}
        split, seed = wanted
        if self.has_splits:
            for option, value in (("--split", split), ("--split-seed", seed)):
                if value is not None:
                    raise ValueError(f"{option} must be left out, as {self.path} has a column split, got {value}")
            for line in self.lines:
                if splits.setdefault(rows[line.video], line.split) != line.split:
                    expected = f"all lines of {line.video} must have one split, {splits[rows[line.video]]}"
                    raise self._wrong(line, expected, line.split)
        else:
            names = {row: name if data.names is None else data.names[row] for name, row in rows.items()}
            groups = {names[row]: min(own, default="") for row, own in shown.items()}
            by_name = split_videos(groups, split or DEFAULT_SPLIT, seed or 0)
            splits = {row: by_name[names[row]] for row in shown}
        for name in needed:
            if name not in splits.values():
                advice = "" if self.has_splits else ": list more videos of each category, or add a column split"
                raise ValueError(f"{self.path} must have videos for {name}, got none among its {len(splits)}{advice}")
        if "train" in needed and not any(splits[row] == "train" and own for row, own in shown.items()):
            raise ValueError(f"{self.path} must have an event in train, got none")
        return splits

    def _remark(
        self,
        data: AVEData,
        rows: Mapping[str, int],
        shown: Mapping[int, Sequence[str]],
        splits: Mapping[int, str],
        say: Callable[[str], object],
    ) -> None:
        """Count the videos of each kind, and name what the network cannot learn."""
        sizes = Counter(splits.values())
        counts = ", ".join(f"{sizes[name]} {name}" for name in SPLITS if sizes[name])
        how = "by its column split" if self.has_splits else "by video"
        silent = sum(not own for own in shown.values())
        say(f"{self.path.name}: {len(shown)} videos, {silent} of them without events, split {how}: {counts}")
        if several := [row for row, own in shown.items() if len(own) > 1]:
            name = next(name for name, row in rows.items() if row == several[0])
            say(
                f"videos with several categories: {len(several)}, for example {name}; each has a row for each of them, "
                f"where the events of its other categories have no label"
            )
        if left := [row for row in range(len(data.audio)) if row not in shown]:
            name = str(left[0]) if data.names is None else data.names[left[0]]
            say(f"videos left out, as they are not in {self.path.name}: {len(left)}, for example {name}")
        trained = {category for row, own in shown.items() if splits[row] == "train" for category in own}
        if trained and (unseen := sorted({category for own in shown.values() for category in own} - trained)):
            say(f"categories that cannot be learned, as they have no video in train: {_some(unseen)}")

    def _wrong(self, line: Line, expected: str, came: object) -> ValueError:
        return ValueError(f"{self.path}, line {line.number}: {expected}, got {printable(came, 80)}")


def _round(start: float, end: float, length: int) -> tuple[int, int]:
    """Return the first second of an event and the end, exclusive, by the rule in :meth:`OwnLabels.apply`.

    Examples:
        >>> _round(0.5, 2.5, 10), _round(0.51, 2.51, 10), _round(3.1, 3.2, 10), _round(9.7, 10.4, 10)
        ((0, 2), (1, 3), (3, 4), (9, 10))
    """
    first, stop = math.ceil(start - 0.5), min(math.ceil(end - 0.5), length)
    if first >= stop:
        first = min(math.floor((start + end) / 2), length - 1)
        stop = first + 1
    return first, stop


def _length(data: AVEData, row: int) -> int:
    return data.audio.shape[1] if data.lengths is None else int(data.lengths[row])


def _some(names: Sequence[str], most: int = 4) -> str:
    """List the first few of several names."""
    listed = ", ".join(printable(name, 40) for name in names[:most])
    return listed if len(names) <= most else f"{listed} and {len(names) - most} others"
