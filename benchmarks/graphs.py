"""CUDA graphs: all that a call launches, recorded once and launched again as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["in_graph"]

WARM_UPS = 3


def in_graph(call: Callable[[], object]) -> Callable[[], object]:
    """Make a call that replays a CUDA graph of another, which is recorded when it is first called.

    Args:
        call: neither reads values back from the GPU nor takes tensors that change between calls. What it allocates in
            the graph is kept for as long as the graph is.
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
    with torch.cuda.stream(stream):  # what is made in the first calls, as compiled code or Adam's moments, is no part
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
