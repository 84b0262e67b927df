"""The networks beside CMRAN, by the name of their row in the tables."""

from collections.abc import Callable, Mapping
from functools import partial

from ave.networks.avel import AVEL
from ave.networks.avsdn import AVSDN, AVSDNTwoScores
from ave.networks.dam import DAM
from ave.networks.ed_tcn import EDTCN
from ave.networks.localizer import Localizer

__all__ = ["NETWORKS"]

NETWORKS: Mapping[str, Callable[..., Localizer]] = {
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
