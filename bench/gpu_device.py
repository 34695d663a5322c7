"""The clock and the ceilings of a CUDA device. Times are the device's own; nothing here knows an op."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

CEILINGS = ("copy_gbs", "matmul_tflops")


class Device:
    """Times calls on the current CUDA device.

    where, backends   where tensors lie, and who may serve calls on them
    quick             leaves out what takes long to prepare: torch.compile
    ceilings          what `measure_ceilings` found
    flush             written between timed calls, so that each call finds its inputs out of the L2 cache
    """

    where = "cuda"
    backends: tuple[str, ...] = ("cuda", "triton")
    timed = True
    image = (128, 128)
    ceilings = dict.fromkeys(CEILINGS, float("nan"))

    def __init__(self, *, quick: bool = False) -> None:
        self.quick = quick
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.name = properties.name
        self.chip = f"sm_{properties.major}{properties.minor}"
        self.cache = getattr(properties, "L2_cache_size", 64 << 20)
        self.flush = torch.empty(max(4 * self.cache, 128 << 20), dtype=torch.uint8, device="cuda")

    def seconds(self, call: Callable[[], Any], *, rounds: int = 20, cold: bool = True, longest: float = 1.5) -> float:
        """Median seconds of one call. The device is kept busy ahead of each, so the host's time does not count."""
        for _ in range(2):
            call()
        once = self._timed(call, 1, cold)[0]
        rounds = max(3, min(rounds, int(longest / max(once, 1e-6))))
        return median(self._timed(call, rounds, cold))

    def _timed(self, call: Callable[[], Any], rounds: int, cold: bool) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        torch.cuda.synchronize()
        for start, stop in events:
            # Writing the cache away also takes longer than the host needs to enqueue a call.
            if cold:
                self.flush.zero_()
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) / 1e3 for start, stop in events]

    def captured(self, call: Callable[[], Any]) -> Callable[[], None]:
        """The call as one CUDA graph; what it runs through must have run before."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def draw(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(*shape, device=self.where, dtype=dtype)

    def size(self, whole: int, small: int) -> int:
        """A row's size: small where nothing is timed."""
        return whole if self.timed else small

    def measure_ceilings(self) -> None:
        """A large copy, GB/s of bytes read plus bytes written; a large bfloat16 product of random data, TFLOP/s."""
        self.ceilings = {"copy_gbs": self._copy(2**30), "matmul_tflops": self._product(8192)}

    def _copy(self, size: int) -> float:
        source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        return 2 * size / self.seconds(lambda: target.copy_(source)) / 1e9

    def _product(self, n: int) -> float:
        a, b = self.draw(n, n), self.draw(n, n)
        product = torch.empty_like(a)
        return 2 * n**3 / self.seconds(lambda: torch.mm(a, b, out=product), cold=False) / 1e12


class DryDevice(Device):
    """Stands in where there is no GPU: rows run at small sizes on the emulated kernels, and nothing is timed."""

    where = "cpu"
    backends = ("cuda-emulated",)
    timed = False
    image = (8, 8)
    name, chip = "none (dry run)", "none"

    def __init__(self) -> None:
        self.quick = True

    def seconds(self, call: Callable[[], Any], **options: Any) -> float:
        call()
        return float("nan")

    def captured(self, call: Callable[[], Any]) -> Callable[[], None]:
        return call

    def measure_ceilings(self) -> None:
        pass


def machine(device: Device) -> dict[str, Any]:
    """What the figures were measured on."""
    import platform

    try:
        import triton

        triton_version: str | None = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "device": device.name,
        "chip": device.chip,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton_version,
        "python": platform.python_version(),
    }
