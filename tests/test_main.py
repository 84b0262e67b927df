"""``python -m crossmodal_attn`` prints the versions, devices and attention backends that a bug report needs."""

import platform
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from crossmodal_attn import __main__ as command


def fields(text):
    """The value of each line by its name."""
    return {line[:20].rstrip(): line[20:] for line in text.splitlines()}


def test_command_prints_versions_devices_and_backends():
    """The command, in a separate process, prints nothing to standard error."""
    result = subprocess.run([sys.executable, "-m", "crossmodal_attn"], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    found = fields(result.stdout)
    for name in ("crossmodal-attn", "einops", "typing-extensions"):
        assert found[name] == version(name)
    assert found["torch"] == torch.__version__
    assert found["python"].endswith(platform.python_version())
    assert found["system"] == platform.platform()
    assert torch.backends.cpu.get_cpu_capability() in found["cpu"]
    assert found["attention backends"] == "flash, efficient, cudnn, math"
    accelerators = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    assert len([name for name in found if ":" in name]) == accelerators


def test_help_says_what_is_printed(capsys):
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    assert "bug report" in capsys.readouterr().out


def test_only_enabled_backends_are_named():
    with sdpa_kernel(SDPBackend.MATH):
        assert fields(command.report())["attention backends"] == "math"


def test_every_accelerator_is_named(monkeypatch):
    """All devices are named, such as two GPUs, or an accelerator that is not CUDA."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    found = fields(command.report())
    assert found["cuda:0"].startswith("GPU 0, capability 9.0, ")
    assert found["cuda:1"].startswith("GPU 1, capability 9.1, ")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert fields(command.report())["mps:1"] == "available"
