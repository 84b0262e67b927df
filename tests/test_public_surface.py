"""The public names and signatures are those in public_surface.txt.

``python tests/test_public_surface.py`` writes the file.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import crossmodal_attn
from crossmodal_attn import CMRA

FILE = Path(__file__).with_name("public_surface.txt")

BROKEN = """These public names were removed or changed:
{lost}
Users may depend on them. If this was not intended, restore them. If it was: keep the old names working, with a
DeprecationWarning, as CONTRIBUTING.md describes, add a line to CHANGELOG.md (Deprecated, Changed or Removed), and run
`python tests/test_public_surface.py`, which writes tests/public_surface.txt."""

GROWN = """These public names are new:
{new}
If they should be public, add a line to CHANGELOG.md (Added), and run `python tests/test_public_surface.py`, which
writes tests/public_surface.txt. If not, remove them from __all__, or give them a leading underscore."""


def public_surface() -> list[str]:
    """Return a line for each public name of each public module: its signature, or the module that defines it.

    Signatures have no types, since these print differently in different versions of Python.
    """
    found = pkgutil.walk_packages(crossmodal_attn.__path__, "crossmodal_attn.")
    modules = ["crossmodal_attn", *(module.name for module in found)]
    return [
        line
        for module in modules
        if not module.rpartition(".")[2].startswith("_")
        for name in sorted(importlib.import_module(module).__all__)
        for line in describe(module, name)
    ]


def describe(module: str, name: str) -> Iterator[str]:
    value = getattr(importlib.import_module(module), name)
    home = getattr(value, "__module__", module)
    if home != module:
        yield f"{module}.{name} is {home}.{value.__qualname__}"
    elif not callable(value):
        yield f"{module}.{name}"
    else:
        yield f"{module}.{name}{signature(value)}"
    if home == module and inspect.isclass(value):
        for member in members(value):
            found = inspect.getattr_static(value, member)
            called = inspect.isroutine(found) or isinstance(found, (classmethod, staticmethod))
            yield f"{module}.{name}.{member}{signature(getattr(value, member)) if called else ''}"


def members(value: type) -> list[str]:
    """Return the public members of a class that this library defines, not torch."""
    own = [base for base in value.__mro__ if base.__module__.startswith("crossmodal_attn")]
    return sorted({member for base in own for member in vars(base) if not member.startswith("_")})


def signature(value: object) -> str:
    found = inspect.signature(value)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=found.empty))


def complaint(recorded: list[str], now: list[str]) -> str:
    """Return a message about the differences, or an empty string. Removed names come before new ones."""
    for text, lines in ((BROKEN, set(recorded) - set(now)), (GROWN, set(now) - set(recorded))):
        if lines:
            return text.format(lost="\n".join(sorted(lines)), new="\n".join(sorted(lines)))
    return ""


def recorded() -> list[str]:
    return FILE.read_text(encoding="utf-8").splitlines()


def test_public_surface_is_the_recorded_one():
    message = complaint(recorded(), public_surface())
    if message:
        pytest.fail(message, pytrace=False)


def test_recorded_surface_covers_the_package():
    """The file lists every name that users import, with parameters and methods, and no line twice."""
    lines = recorded()
    for name in crossmodal_attn.__all__:
        assert any(line.startswith((f"crossmodal_attn.{name} is ", f"crossmodal_attn.{name}(")) for line in lines) or (
            f"crossmodal_attn.{name}" in lines
        ), name
    assert any(line.startswith("crossmodal_attn.cmra.CMRA(embed_dim, num_heads, dropout=0.0") for line in lines)
    assert any(line.startswith("crossmodal_attn.cmra.CMRA.from_multihead_attention(attention)") for line in lines)
    assert "crossmodal_attn.recording.RelationSummary.intra" in lines
    assert len(set(lines)) == len(lines)


def test_a_removed_name_is_noticed(monkeypatch):
    monkeypatch.setattr(crossmodal_attn, "__all__", [name for name in crossmodal_attn.__all__ if name != "AGSCA"])
    message = complaint(recorded(), public_surface())
    assert message.startswith("These public names were removed")
    assert "\ncrossmodal_attn.AGSCA is crossmodal_attn.agsca.AGSCA\n" in message
    assert "CMRA" not in message


def fewer(self, query, context=None, *, need_weights=False):
    """A forward that lacks the masks, to replace the real one."""


@pytest.mark.parametrize("change", [fewer, property(fewer)], ids=["fewer parameters", "no method"])
def test_a_changed_signature_is_noticed(monkeypatch, change):
    monkeypatch.setattr(CMRA, "forward", change)
    message = complaint(recorded(), public_surface())
    assert message.startswith("These public names were removed")
    assert "\ncrossmodal_attn.cmra.CMRA.forward(self, query, context=None, *, query_padding_mask=None" in message


def test_a_changed_default_is_noticed(monkeypatch):
    monkeypatch.setattr(crossmodal_attn.padding_mask, "__defaults__", (7,))
    assert "\ncrossmodal_attn.masks.padding_mask(lengths, max_length=None)\n" in complaint(recorded(), public_surface())


def test_a_new_name_is_noticed(monkeypatch):
    monkeypatch.setattr(crossmodal_attn.CMRA, "novelty", fewer, raising=False)
    message = complaint(recorded(), public_surface())
    assert message.startswith("These public names are new")
    assert "\ncrossmodal_attn.cmra.CMRA.novelty(self, query, context=None, *, need_weights=False)\n" in message


if __name__ == "__main__":
    FILE.write_text("\n".join(public_surface()) + "\n", encoding="utf-8")
