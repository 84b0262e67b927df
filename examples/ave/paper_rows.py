"""The rows of Tables 1 to 5 of the CMRAN paper: the options of their trainings, and their published accuracies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ave import Setting
from ave.networks.registry import Network

__all__ = ["FULL", "NAMES", "TABLES", "Row", "Table"]

Table = Literal[1, 2, 3, 4, 5]


@dataclass(frozen=True)
class Row:
    """A row of a table: the options of its training, and its published accuracies."""

    label: str
    paper: Mapping[Setting, float | None]
    """The published accuracy in % for each setting, or None if not published."""
    network: Network = "cmran"
    options: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Other options of `train` that differ from the full network."""

    def arguments(self) -> list[str]:
        """Return the command-line options of `train`."""
        arguments = ["--network", self.network]
        for name, value in self.options.items():
            arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        return arguments

    @property
    def name(self) -> str:
        """The name of the row in `--rows` and in the name of its directory."""
        parts = [part.removeprefix("--") for part in self.arguments()[1:]]
        return "-".join(parts[1:] if self.network == "cmran" and len(parts) > 1 else parts)


def _network(network: Network, label: str, supervised: float | None, weak: float | None = None, **options: bool) -> Row:
    return Row(label, {"supervised": supervised, "weak": weak}, network, options)


def _variant(label: str, supervised: float | None, weak: float | None, **options: str | int | bool) -> Row:
    return Row(label, {"supervised": supervised, "weak": weak}, "cmran", options)


FULL = _variant("CMRAN", 77.4, 72.9)
RIVALS = (
    _network("ed-tcn", "ED-TCN", 46.9),
    _network("avel-a", "Audio only", 59.5, 53.4),
    _network("avel-v", "Visual only", 55.3, 52.9),
    _network("avel-v-att", "Visual + Att", 58.5, 55.6),
    _network("avel-av", "Audio-Visual", 71.4, 63.7),
    _network("avel-av-att", "Audio-Visual + Att", 72.7, 66.7),
    _network("avel-av-att", "Audio-Visual + Att, as in its code", 72.7, 66.7, as_published=True),
    _network("avel-dmrn", "DMRN", None, None),
    _network("avsdn", "AVSDN", 72.6, 66.8),
    _network("avsdn-cpsp", "AVSDN, two heads as in CPSP", None, None),
    _network("dam", "DAM", 74.5),
    FULL,
)
TABLES: Mapping[Table, tuple[Row, ...]] = {
    1: RIVALS,
    2: RIVALS,
    3: (
        _variant("w/o CMRA", 76.07, 72.03, relation="none"),
        _variant("w/o CMRA, other reading: blocks without attention", None, None, relation="none-feedforward"),
        _variant("CMRA-F", 75.62, 71.67, relation="cmra-f"),
        _variant("Self-Att", 76.42, 72.46, relation="self"),
        _variant("Self-Att, other reading: three stacked blocks", None, None, relation="self-stacked"),
        _variant("Co-Att", 76.64, 72.24, relation="co"),
        _variant("own projections for each modality", None, None, own_projections=True),
        FULL,
    ),
    4: (
        _variant("w/o AGSCA", 76.24, 72.16, guidance="mean"),
        _variant("AGVA", 76.95, 72.34, guidance="agva"),
        _variant("w/o AV-Interaction", 77.09, 72.61, interaction="product"),
        _variant("with Self-Att", 77.29, 72.64, interaction="self"),
        FULL,
    ),
    5: (
        *(
            _variant(f"{layers} layer{'s' * (layers != 1)}", supervised, weak, num_layers=layers)
            for layers, supervised, weak in ((0, 76.73, 72.56), (1, 77.09, 72.91), (3, 76.86, 72.86), (4, 76.67, 72.58))
        ),
        FULL,
    ),
}
"""The rows of each table in the paper. Table 1 is supervised, Table 2 is weak, the others have both settings."""
NAMES = sorted({row.name for rows in TABLES.values() for row in rows})
"""The names of all rows."""
