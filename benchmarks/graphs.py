"""Replay a call as a CUDA graph: its kernels are recorded once and then launched together."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["in_graph"]

WARM_UPS = 3


def in_graph(call: Callable[[], object]) -> Callable[[], object]:
    """Return a function that replays the CUDA graph of a call. The graph is recorded at the first use.

    Args:
        call: the call to record. It must not read values back from the GPU, and its tensors must stay the same. Memory
            allocated in the graph lives as long as the graph.
    """
    graphs: list[torch.cuda.CUDAGraph] = []

    def replay() -> None:
        if not graphs:
            graphs.append(_record(call))
        graphs[0].replay()

    return replay


def _record(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # first calls compile code or make Adam's moments
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
