"""What ``python -m crossmodal_attn`` prints: the versions, and the backends that torch itself says it takes."""

import platform
import re
import subprocess
import sys
import warnings
from importlib.metadata import version

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from crossmodal_attn import __main__ as command
from crossmodal_attn import relation


@pytest.fixture(scope="module")
def report():
    return command.report()


def table(text, heading):
    """The cells of one table by row, and the lines below it that give reasons."""
    lines = text.split(f"\n{heading} ", 1)[1].split("\n\n")[0].splitlines()
    rows = [re.split(r" {2,}", line.strip()) for line in lines[1:]]
    return {row[0]: row[1:] for row in rows if len(row) == 5}, [row[0] for row in rows if len(row) < 5]


def test_command_prints_what_a_bug_report_needs():
    """From a process of its own: all versions, the device and both tables, and nothing on standard error."""
    result = subprocess.run([sys.executable, "-m", "crossmodal_attn"], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    for name in ("crossmodal-attn", "einops", "typing-extensions"):
        assert any(line.split() == [name, version(name)] for line in lines)
    assert any(line.split() == ["torch", torch.__version__] for line in lines)
    assert any(line.startswith("python") and line.endswith(platform.python_version()) for line in lines)
    assert any(line.startswith("system") and line.endswith(platform.platform()) for line in lines)
    assert any(line.startswith("cpu ") and "threads: " in line for line in lines)
    for heading in ("cpu, float32", "cpu, bfloat16"):
        cells, _ = table(result.stdout, heading)
        assert list(cells) == [
            "CMRA",
            "CrossModalRelation",
            "InternalTemporalRelation",
            "RelationAware",
            "AVInteraction",
            "AGSCA",
        ]


def test_help_says_what_it_prints(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert "bug report" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backends_are_those_that_torch_chooses(monkeypatch, dtype):
    """What ran is what torch's own choice, asked with the arguments of each call of attention, says."""
    chosen = set()
    attention = torch.nn.functional.scaled_dot_product_attention

    def choose(*args, **options):
        chosen.add(SDPBackend(torch._fused_sdp_choice(*args, **options)))
        return attention(*args, **options)

    monkeypatch.setattr(relation.F, "scaled_dot_product_attention", choose)
    calls = command._calls("cpu", dtype)
    ran = command._table(calls)
    for name, row in calls.items():
        for call, cell in zip(row.values(), ran[name], strict=True):
            chosen.clear()
            call()
            assert chosen == {command.BACKENDS[cell]}


def test_report_follows_what_is_allowed():
    """Where torch may take its plain attention alone, that is what ran, and the fused one was possible."""
    with sdpa_kernel(SDPBackend.MATH):
        cells, reasons = table(command.report(), "cpu, float32")
    assert cells.pop("AGSCA") == ["tiles", "-", "tiles", "-"]
    assert all(row == ["math"] * 4 for row in cells.values())
    assert "flash: possible, not chosen (evaluation; evaluation, padded)" in reasons


def test_reasons_are_torch_s(report):
    """On a CPU dropout keeps the fused attention from training; backends of other devices are none there."""
    cells, reasons = table(report, "cpu, float32")
    assert cells["CMRA"] == ["flash", "flash", "math", "math"]
    assert any(re.match(r"flash: .*dropout.* \(training; training, padded\)$", reason) for reason in reasons)
    assert "math: possible, not chosen (evaluation; evaluation, padded)" in reasons
    assert any(reason.startswith("efficient, cudnn: No ") for reason in reasons)


def test_of_all_that_torch_warns_a_backend_s_own_reasons_are_told():
    """On CUDA it explains every backend in turn, also those that were only switched off."""

    def refuse():
        for line in (
            "Memory efficient kernel not used because:",
            "Memory Efficient attention has been runtime disabled.",
            "Flash attention kernel not used because:",
            "Expected query, key and value to all be of dtype: {Half, BFloat16}. (Triggered internally at utils.h:72.)",
            "CuDNN attention kernel not used because:",
            "CuDNN attention has been runtime disabled.",
        ):
            warnings.warn(line, stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.\nException raised from here")

    flash = command._refusal(refuse, "flash")
    assert flash == "Expected query, key and value to all be of dtype: {Half, BFloat16}."
    assert command._refusal(refuse, "math") == "No available kernel. Aborting execution."
    assert command._refusal(lambda: None, "math") == "possible, not chosen"


def test_what_a_device_lacks_is_a_line():
    """A report is made where something fails: it must not fail with it, nor tell one call's backends of another."""

    def fail():
        raise NotImplementedError("not on this device")

    def attend(dropout):
        return lambda: torch.nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 2, 5, 4), dropout_p=dropout)

    def both():
        attend(0.0)()
        attend(0.5)()

    calls = {"One": {"a": fail, "b": attend(0.0)}, "Two": {"a": lambda: None, "b": attend(0.5)}, "Three": {"a": both}}
    assert command._table(calls) == {
        "One": ["fails: NotImplementedError", "flash"],
        "Two": ["none", "math"],
        "Three": ["flash and math"],
    }


def test_agsca_leaves_its_tiles_where_it_is_watched():
    """By a hook on all modules, for one."""
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    cells, reasons = table(command.report(), "cpu, float32")
    handle.remove()
    assert cells["AGSCA"] == ["plain", "-", "plain", "-"]
    assert any("AGSCA computes in tiles where" in reason for reason in reasons)
