"""The networks, by the name of their row in the tables, and their classes, by the name that a saved network carries."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from ave import Setting
from ave.networks.avel import AVEL
from ave.networks.avsdn import AVSDN, AVSDNTwoScores
from ave.networks.cmran import CMRAN
from ave.networks.dam import DAM
from ave.networks.ed_tcn import EDTCN
from ave.networks.localizer import Localizer, Recipe

__all__ = ["CLASSES", "NETWORKS", "PUBLISHED", "PUBLISHED_CELLS", "Network", "find_recipe", "find_recipes"]

Network = Literal[
    "cmran",
    "ed-tcn",
    "avel-a",
    "avel-v",
    "avel-v-att",
    "avel-av",
    "avel-av-att",
    "avel-dmrn",
    "avsdn",
    "avsdn-cpsp",
    "dam",
]
NETWORKS: Mapping[Network, Callable[..., Localizer]] = {
    "cmran": CMRAN,
    "ed-tcn": EDTCN,
    "avel-a": partial(AVEL, streams="audio", attention=False),
    "avel-v": partial(AVEL, streams="video", attention=False),
    "avel-v-att": partial(AVEL, streams="video"),
    "avel-av": partial(AVEL, attention=False),
    "avel-av-att": AVEL,
    "avel-dmrn": partial(AVEL, fusion="dmrn"),
    "avsdn": AVSDN,
    "avsdn-cpsp": AVSDNTwoScores,
    "dam": DAM,
}
"""Each takes the setting, then the arguments of :class:`Localizer` by keyword, and is its default otherwise."""

CLASSES: Mapping[str, type[Localizer]] = {
    kind.__name__: kind for kind in (CMRAN, EDTCN, AVEL, AVSDN, AVSDNTwoScores, DAM)
}
"""The classes, by the name that `config.json` of a saved network has."""

PUBLISHED: tuple[Network, ...] = tuple(
    name for name, kind in NETWORKS.items() if "as_published" in inspect.signature(kind).parameters
)
"""The networks that have the form of their public code beside the default."""
PUBLISHED_CELLS = 49
"""The positions of the visual map for which that form is defined."""


def find_recipes(network: Network) -> Mapping[Setting, Recipe]:
    """Return the published training of a network in each setting that it has."""
    kind = NETWORKS[network]
    return CLASSES[(kind.func if isinstance(kind, partial) else kind).__name__].recipes


def find_recipe(network: Network, setting: Setting) -> Recipe:
    """Return the published training of a network in a setting.

    Raises:
        ValueError: if the network has no such setting.
    """
    recipes = find_recipes(network)
    if setting not in recipes:
        raise ValueError(f"--setting must be {' or '.join(recipes)} for {network}, got {setting}")
    return recipes[setting]
