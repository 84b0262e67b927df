"""The page of the command line lists every option, with its text and its default."""

import dataclasses
import importlib.util
from pathlib import Path

import ave_cmran

PATH = Path(__file__).parents[1] / "docs/_extensions/command_line.py"
SPECIFICATION = importlib.util.spec_from_file_location("command_line", PATH)
command_line = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(command_line)


def test_every_option_has_a_text():
    for name, (kind, _) in ave_cmran.COMMANDS.items():
        options = list(command_line.read_options(command_line.print_help(name)))
        names = [option.flags.split(",")[0].split(" ")[0] for option in options]
        assert names == [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(kind)]
        assert all(option.text for option in options)
        required = [field.default is dataclasses.MISSING for field in dataclasses.fields(kind)]
        assert [option.required for option in options] == required


def test_what_options_take_is_simple():
    """Python's None, which nobody has to type, is left out."""
    page = command_line.describe_commands()
    assert "\n`--seeds INT ...`\n: " in page
    assert "\n`--epochs INT`\n: " in page
    assert " Default: `float16`.\n" in page
    assert "\n`--tables {1,2,3,4,5} ...`\n: " in page
    assert "None" not in page
    assert "│" not in page


def test_code_in_a_text_stays_code():
    """Options inside code are not marked again, which would end the code."""
    page = command_line.describe_commands()
    assert "in the output of `train --labels`." in page
    assert "Labels of `--data` as text" in page
    assert "runs/\\<date and time>" in page


def test_help_in_a_box_is_read_too():
    boxed = "╭─ options ─╮\n│ -h, --help  show │\n│ --data PATH │\n│       a directory (required)   │\n╰─╯"
    assert list(command_line.read_options(boxed)) == [command_line.Option("--data PATH", "a directory", None, True)]
