"""Divide videos among train, val and test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from ave.data.dataset import SPLITS

__all__ = ["DEFAULT_SPLIT", "split_videos"]

DEFAULT_SPLIT = "70/15/15"
"""The shares of train, val and test in percent."""


def split_videos(groups: Mapping[str, str], split: str, seed: int = 0) -> dict[str, str]:
    """Divide videos among train, val and test at random. The result depends only on the arguments, not on their order.

    Within each category, videos are in the order of a digest of their names and the seed. The first one of each
    category is in train; each other one is put into the split that is furthest below its share, so that each split has
    its share of every category.

    Args:
        groups: the category of each video, by the name of the video.
        split: the shares of train, val and test in percent, which sum to 100. That of val may be 0.
        seed: another seed gives another division.

    Raises:
        ValueError: if ``split`` is not three such numbers.

    Examples:
        >>> from collections import Counter
        >>> groups = {f"video {number}": "dog" if number % 2 else "cat" for number in range(20)}
        >>> Counter(split_videos(groups, "60/20/20").values())
        Counter({'train': 12, 'test': 4, 'val': 4})
    """
    shares = [int(part) for part in split.split("/")] if re.fullmatch(r"\d{1,3}/\d{1,3}/\d{1,3}", split) else []
    if sum(shares) != 100 or not (shares[0] and shares[2]):
        expected = f"such as {DEFAULT_SPLIT}: they sum to 100, and only val may have 0"
        raise ValueError(f"--split must be the shares of train, val and test in percent, {expected}, got {split}")
    wanted = dict(zip(SPLITS, shares, strict=True))
    counts, chosen = dict.fromkeys(SPLITS, 0), dict[str, str]()
    salt = str(seed) if seed else ""
    digests = {name: hashlib.sha256(f"{name}{salt}".encode("utf-8", "surrogatepass")).hexdigest() for name in groups}
    started = set[str]()
    for name in sorted(groups, key=lambda name: (groups[name], digests[name])):
        lacking = {place: wanted[place] * (len(chosen) + 1) - 100 * counts[place] for place in reversed(SPLITS)}
        place = max(lacking, key=lambda place: lacking[place]) if groups[name] in started else "train"
        started.add(groups[name])
        counts[place] += 1
        chosen[name] = place
    return chosen
