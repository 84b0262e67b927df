"""All networks: by their names on the command line, and by the class names in saved networks."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from ave import Setting
from ave.networks.avel import AVEL
from ave.networks.avsdn import AVSDN, AVSDNTwoScores
from ave.networks.cmran import CMRAN
from ave.networks.dam import DAM
from ave.networks.ed_tcn import EDTCN
from ave.networks.localizer import Localizer, Recipe

__all__ = ["CLASSES", "NETWORKS", "PUBLISHED", "PUBLISHED_CELLS", "VARIANT", "Network", "describe_network"]
__all__ += ["find_recipe", "find_recipes", "network_title"]

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
NETWORKS: Mapping[Network, partial[Any]] = {
    "cmran": partial(CMRAN),
    "ed-tcn": partial(EDTCN),
    "avel-a": partial(AVEL, streams="audio", attention=False),
    "avel-v": partial(AVEL, streams="video", attention=False),
    "avel-v-att": partial(AVEL, streams="video"),
    "avel-av": partial(AVEL, attention=False),
    "avel-av-att": partial(AVEL),
    "avel-dmrn": partial(AVEL, fusion="dmrn"),
    "avsdn": partial(AVSDN),
    "avsdn-cpsp": partial(AVSDNTwoScores),
    "dam": partial(DAM),
}
"""Functions that build the networks. Each takes the setting, and the arguments of :class:`Localizer` by keyword."""

CLASSES: Mapping[str, type[Localizer]] = {
    kind.__name__: kind for kind in (CMRAN, EDTCN, AVEL, AVSDN, AVSDNTwoScores, DAM)
}
"""The classes, by their names in `config.json` of a saved network."""

PUBLISHED: tuple[Network, ...] = tuple(
    name for name, kind in NETWORKS.items() if "as_published" in inspect.signature(kind).parameters
)
"""The networks that have the argument ``as_published``."""
PUBLISHED_CELLS = 49
"""The number of positions of the visual map that these networks need with ``as_published``."""

VARIANT = ("as_published", "senses", "relation", "guidance", "interaction", "num_layers", "own_projections")
"""The arguments of networks that select a variant. They are also options of `train`."""


def find_recipes(network: Network) -> Mapping[Setting, Recipe]:
    """Return the published hyperparameters of a network, for each setting that it has."""
    return CLASSES[NETWORKS[network].func.__name__].recipes


def find_recipe(network: Network, setting: Setting) -> Recipe:
    """Return the published hyperparameters of a network in a setting.

    Raises:
        ValueError: if the network does not have the setting.
    """
    recipes = find_recipes(network)
    if setting not in recipes:
        raise ValueError(f"--setting must be {' or '.join(recipes)} for {network}, got {setting}")
    return recipes[setting]


def network_title(network: str, setting: Setting, variant: Mapping[str, Any]) -> str:
    """Return the name of a network, its setting and its variant as text.

    Examples:
        >>> network_title("cmran", "weak", {"relation": "co"})
        'CMRAN, weak, relation co'
    """
    name = "CMRAN" if network == "cmran" else network
    return ", ".join([name, setting, *(f"{option.replace('_', ' ')} {value}" for option, value in variant.items())])


def describe_network(model: Localizer) -> str:
    """Return the title of a network, from the arguments that it was built with.

    Examples:
        >>> describe_network(AVEL(streams="video"))
        'avel-v-att, supervised'
    """
    arguments, defaults = model.arguments, inspect.signature(type(model)).parameters
    fitting = [
        name
        for name, kind in NETWORKS.items()
        if kind.func is type(model) and kind.keywords.items() <= arguments.items()
    ]
    name = max(fitting, key=lambda name: len(NETWORKS[name].keywords), default=type(model).__name__)
    given = [option for option in VARIANT if option in defaults and arguments[option] != defaults[option].default]
    return network_title(name, model.setting, {option: arguments[option] for option in given})
