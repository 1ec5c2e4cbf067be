"""When something was reached: on a GPU, when the device got there, without making the host wait for it."""

import time

import torch

Mark = float | torch.cuda.Event


class Clock:
    """Marks on one device, and the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """Now, in the order of the work handed to the device so far."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    @staticmethod
    def seconds(start: Mark, end: Mark) -> float:
        """From ``start`` to ``end``; waits until the device has reached ``end``."""
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000
        assert isinstance(start, float)
        assert isinstance(end, float)
        return end - start
