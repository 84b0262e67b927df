"""The package exports, imports and documents what it should."""

import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import crossmodal_attn

PUBLIC = [name for name in crossmodal_attn.__all__ if name != "__version__"]


def test_all_is_what_there_is():
    """__all__ lists every public name once."""
    there = {
        name
        for name, value in vars(crossmodal_attn).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert there == set(PUBLIC)
    assert len(set(PUBLIC)) == len(PUBLIC)


def methods(value):
    """Return the public functions that a class defines, its call included; none for a function."""
    members = inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else []
    own = [function for name, function in members if name == "__call__" or not name.startswith("_")]
    return [function for function in own if function.__module__.startswith("crossmodal_attn.")]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name):
    """Every parameter is described, of the methods of a class too, and there is an example."""
    value = getattr(crossmodal_attn, name)
    assert value.__module__.startswith("crossmodal_attn.")
    for documented in (value, *methods(value)):
        for parameter in list(inspect.signature(documented).parameters):
            assert parameter == "self" or f"{parameter}: " in documented.__doc__, parameter
    assert ">>> " in value.__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_annotated(name):
    """Every parameter and result has a type, as py.typed promises."""
    value = getattr(crossmodal_attn, name)
    constructor = getattr(value, "__new__" if inspect.isclass(value) and issubclass(value, tuple) else "__init__")
    for function in (constructor if inspect.isclass(value) else value, *methods(value)):
        signature = inspect.signature(function)
        parameters = [
            parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "_cls")
        ]
        assert all(parameter.annotation is not parameter.empty for parameter in parameters)
        assert function.__name__ == "__new__" or signature.return_annotation is not signature.empty
    assert (Path(crossmodal_attn.__file__).parent / "py.typed").is_file()


def test_version_is_that_of_the_distribution():
    assert crossmodal_attn.__version__ == importlib.metadata.version("crossmodal-attn")


def test_import_brings_its_requirements_only():
    """Importing the package adds only its own modules to those of its requirements, and no compiler."""
    script = """
import sys, torch, einops, typing_extensions
before = set(sys.modules)
import crossmodal_attn
print(*set(sys.modules) - before)
assert "torch._dynamo" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    added = set(result.stdout.split())
    assert "crossmodal_attn.cmra" in added
    assert {module.partition(".")[0] for module in added} - set(sys.stdlib_module_names) == {"crossmodal_attn"}


def test_requirements_are_what_is_imported():
    """The distribution requires exactly the three packages that the sources import."""
    requirements = importlib.metadata.requires("crossmodal-attn")
    names = {requirement.partition(">")[0] for requirement in requirements if "extra ==" not in requirement}
    assert names == {"einops", "torch", "typing-extensions"}
