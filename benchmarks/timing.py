"""How the benchmarks take time: in turns, so that whatever else the machine does falls on all alike."""

import time
from collections.abc import Callable, Mapping

import torch


def interleaved(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each work, to its end on the device: first quartile, median, third. A first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            taken = seconds(work)
            if repeat:
                times[name].append(taken)
    quarters = torch.tensor([0.25, 0.5, 0.75])
    return {name: torch.tensor(some).quantile(quarters).tolist() for name, some in times.items()}


def seconds(work: Callable[[], object]) -> float:
    """Of one call, to its end on the device."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
