"""What a bug report should hold, printed by ``python -m crossmodal_attn``: versions, devices, how the layers compute.

The backends of scaled dot-product attention are observed, not derived from rules: each layer runs at its usual width
under torch's profiler, which names the operator that ran; then once for each backend alone, where torch says itself
why it refuses.
"""

import argparse
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function

from crossmodal_attn import (
    AGSCA,
    CMRA,
    AVInteraction,
    CrossModalRelation,
    InternalTemporalRelation,
    RelationAware,
    padding_mask,
)
from crossmodal_attn._tiles import tiles_apply

__all__ = ["report"]

BATCH, LENGTH, WIDTH, HEADS, DROPOUT = 2, 10, 256, 4, 0.1

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

OPERATOR = "aten::_scaled_dot_product_"
"""What the names of all backends' operators begin with."""

SITUATIONS = {
    "evaluation": (False, False),
    "evaluation, padded": (False, True),
    "training": (True, False),
    "training, padded": (True, True),
}
"""Whether the layer trains, with dropout and gradients, and whether it is given padding masks."""

Call = Callable[[], object]


def report() -> str:
    """Versions, devices, and for each kind of device which way each layer computes and why, as lines of text."""
    return "\n".join(
        [
            *_versions(),
            *_devices(),
            "",
            f"Backends that ran: batch {BATCH}, {LENGTH} segments, width {WIDTH}, {HEADS} heads, dropout {DROPOUT}",
            *(
                line
                for device in _kinds()
                for dtype in (torch.float32, torch.bfloat16)
                for line in _ways(device, dtype)
            ),
        ]
    )


def _versions() -> Iterator[str]:
    for name in ("crossmodal-attn", "torch", "einops", "typing-extensions"):
        yield f"{name:18}{torch.__version__ if name == 'torch' else version(name)}"
    yield f"{'python':18}{platform.python_implementation()} {platform.python_version()}"
    yield f"{'system':18}{platform.platform()}"


def _devices() -> Iterator[str]:
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    yield f"{'cpu':18}{platform.machine()}, {capability}, threads: {threads}"
    for kind in _kinds()[1:]:
        for index in range(torch.accelerator.device_count()):
            yield f"{f'{kind}:{index}':18}{_describe(kind, index)}"


def _describe(kind: str, index: int) -> str:
    if kind != "cuda":
        return "available"
    toolkit = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    name, cudnn = torch.cuda.get_device_name(index), torch.backends.cudnn.version()
    return f"{name}, capability {capability}, {toolkit}, cuDNN {cudnn}"


def _kinds() -> list[str]:
    """The CPU, and the accelerator if there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


def _ways(device: str, dtype: torch.dtype) -> Iterator[str]:
    """A table of the ways that the layers compute, and below it why they do not compute in others."""
    calls = _calls(device, dtype)
    table = _table(calls)
    yield ""
    yield _row(f"{device}, {str(dtype).removeprefix('torch.')}", *SITUATIONS)
    for name, cells in table.items():
        yield _row(f"  {name}", *cells)
    guided = _guided(device, dtype)
    yield _row("  AGSCA", guided, "-", guided, "-")
    yield "  Each of torch's other backends on its own, in torch's words:"
    backends: dict[tuple[str, ...], list[str]] = {}
    for backend in BACKENDS:
        for reason, situations in _refusals(backend, calls, table).items():
            backends.setdefault((reason, *situations), []).append(backend)
    for (reason, *situations), refused in backends.items():
        when = "" if len(situations) == len(SITUATIONS) else f" ({'; '.join(situations)})"
        yield f"    {', '.join(refused)}: {reason}{when}"
    if guided == "plain":
        yield "  AGSCA computes in tiles where it is eager, on a CPU, and nothing wraps or watches its projections."


def _row(name: str, *cells: str) -> str:
    return (f"{name:28}" + "".join(f"{cell:22}" for cell in cells)).rstrip()


def _refusals(backend: str, calls: dict[str, dict[str, Call]], table: dict[str, list[str]]) -> dict[str, list[str]]:
    """For each reason not to take a backend the situations in which it holds, for any layer."""
    reasons: dict[str, list[str]] = {}
    for name, row in calls.items():
        for (situation, call), taken in zip(row.items(), table[name], strict=True):
            if taken != backend:
                situations = reasons.setdefault(_refusal(call, backend), [])
                situations += [] if situation in situations else [situation]
    return reasons


def _calls(device: str, dtype: torch.dtype) -> dict[str, dict[str, Call]]:
    """Each layer with attention, in each situation."""
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    video, audio = (torch.randn(BATCH, LENGTH, WIDTH, **factory) for _ in range(2))
    padding = padding_mask(torch.arange(LENGTH, LENGTH - BATCH, -1, device=device), LENGTH)

    def cross(layer: nn.Module, mask: Tensor | None) -> object:
        return layer(video, audio, query_padding_mask=mask, context_padding_mask=mask)

    def alone(layer: nn.Module, mask: Tensor | None) -> object:
        return layer(video, padding_mask=mask)

    def both(layer: nn.Module, mask: Tensor | None) -> object:
        return layer(video, audio, padding_mask=mask)

    layers: list[tuple[nn.Module, Callable[[nn.Module, Tensor | None], object]]] = [
        (CMRA(WIDTH, HEADS, DROPOUT, **factory), cross),
        (CrossModalRelation(WIDTH, HEADS, WIDTH, DROPOUT, **factory), cross),
        (InternalTemporalRelation(WIDTH, HEADS, 1, WIDTH, DROPOUT, **factory), alone),
        (RelationAware(WIDTH, WIDTH, WIDTH, HEADS, 1, WIDTH, DROPOUT, **factory), cross),
        (AVInteraction(WIDTH, HEADS, DROPOUT, **factory), both),
    ]

    def bind(layer: nn.Module, call: Callable[[nn.Module, Tensor | None], object], trains: bool, padded: bool) -> Call:
        def run() -> object:
            layer.train(trains)
            with torch.set_grad_enabled(trains):
                return call(layer, padding if padded else None)

        return run

    return {
        type(layer).__name__: {situation: bind(layer, call, *options) for situation, options in SITUATIONS.items()}
        for layer, call in layers
    }


def _table(calls: dict[str, dict[str, Call]]) -> dict[str, list[str]]:
    """For each call the backends whose operators ran in it, by torch's profiler."""
    cells = {f"{name}, {situation}": call for name, row in calls.items() for situation, call in row.items()}
    found: dict[str, set[str]] = {label: set() for label in cells}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:  # operators are called there on every device
        for label, call in cells.items():
            with record_function(label):
                try:
                    call()
                except RuntimeError as error:  # what a device lacks is worth a line, not a traceback
                    found[label].add(f"fails: {type(error).__name__}")
    for event in profiler.events() or ():
        if event.name.startswith(OPERATOR):
            operator, caller = event.name.removeprefix(OPERATOR), event.cpu_parent
            while caller.name not in found:
                caller = caller.cpu_parent
            found[caller.name].add(next((backend for backend in BACKENDS if backend in operator), operator))
    return {
        name: [" and ".join(sorted(found[f"{name}, {situation}"])) or "none" for situation in row]
        for name, row in calls.items()
    }


def _refusal(call: Call, backend: str) -> str:
    """Why torch refuses a backend where it may take no other, in its own words."""
    with warnings.catch_warnings(record=True) as caught, sdpa_kernel(BACKENDS[backend]):
        warnings.simplefilter("always")
        try:
            call()
        except RuntimeError as error:
            said = [str(warning.message).partition(" (Triggered internally")[0] for warning in caught]
            return " ".join(_about(backend, said)) or str(error).partition("\n")[0]
    return "possible, not chosen"


def _about(backend: str, said: Sequence[str]) -> Iterator[str]:
    """Of torch's warnings, which explain every backend in turn under a heading each, those about one."""
    meant = False
    for line in said:
        if line.endswith("because:"):
            meant = backend in line.lower()
        elif meant:
            yield line


def _guided(device: str, dtype: torch.dtype) -> str:
    """Whether AGSCA computes in tiles."""
    layer = AGSCA(WIDTH, WIDTH, device=device, dtype=dtype)
    video = torch.zeros(1, 1, WIDTH, device=device, dtype=dtype)
    return "tiles" if tiles_apply(video, layer.channel_video_proj, layer.spatial_video_proj) else "plain"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(
        prog="python -m crossmodal_attn",
        description="Print what a bug report should hold: versions, devices, and how the layers compute here.",
    )
    parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells standard error when it starts and stops
    print(report())


if __name__ == "__main__":
    main()
