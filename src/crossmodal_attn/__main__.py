"""Print what a bug report needs: versions, devices and attention backends. Run ``python -m crossmodal_attn``."""

import argparse
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import torch

__all__ = ["report"]


def report() -> str:
    """Return the versions, the devices and the enabled attention backends, one per line."""
    return "\n".join(f"{name:20}{value}" for name, value in (*_versions(), *_devices(), *_backends()))


def _versions() -> Iterator[tuple[str, str]]:
    for name in ("crossmodal-attn", "torch", "einops", "typing-extensions"):
        yield name, torch.__version__ if name == "torch" else version(name)  # a PyPI build's metadata lacks "+cpu"
    yield "python", f"{platform.python_implementation()} {platform.python_version()}"
    yield "system", platform.platform()


def _devices() -> Iterator[tuple[str, str]]:
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield "cpu", f"{platform.machine()}, {capability}, {threads} threads"
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        for index in range(torch.accelerator.device_count()):
            kind = accelerator.type
            yield f"{kind}:{index}", _describe_cuda(index) if kind == "cuda" else "available"


def _describe_cuda(index: int) -> str:
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    name, cudnn = torch.cuda.get_device_name(index), torch.backends.cudnn.version()
    return f"{name}, capability {capability}, {toolkit}, cuDNN {cudnn}"


def _backends() -> Iterator[tuple[str, str]]:
    """List the enabled backends of scaled dot-product attention. A device may support only some of them."""
    cuda = torch.backends.cuda  # these flags apply to all devices, not only CUDA
    enabled = {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    yield "attention backends", ", ".join(name for name, on in enabled.items() if on) or "none"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    argparse.ArgumentParser(prog="python -m crossmodal_attn", description=__doc__).parse_args(arguments)
    print(report())


if __name__ == "__main__":
    main()
