"""The most memory this process held while something ran, and torch's most on a GPU. Linux alone tells the first."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc/self")


class PeakMemory:
    """Watches from its creation on.

    Args:
        device: cpu or cuda:N; on a GPU torch's own count is watched as well.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._sampled = 0
        try:
            (_PROC / "clear_refs").write_text("5")  # sets the kernel's high-water mark to what is held now
            self._is_marked = True
        except OSError:
            self._is_marked = False
        if self._is_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats(torch.device(device))

    @property
    def _is_gpu(self) -> bool:
        return self._device.startswith("cuda")

    def sample(self) -> None:
        """To be called now and then: where the system's mark cannot be reset, the largest sample is the peak."""
        self._sampled = max(self._sampled, _held())

    def process_bytes(self) -> int | None:
        """The most memory held by the whole process, libraries and page tables apart; None: it cannot be told."""
        self.sample()
        marked = _status("VmHWM") if self._is_marked else 0
        return max(marked, self._sampled) or None

    def gpu_bytes(self) -> int | None:
        """The most memory torch had in use on the GPU; None: there is none in this."""
        if not self._is_gpu:
            return None
        import torch

        return int(torch.cuda.max_memory_allocated(torch.device(self._device)))


def _held() -> int:
    try:
        pages = int((_PROC / "statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def _status(key: str) -> int:
    try:
        text = (_PROC / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()
        if name == key and number and number[0].isdigit():
            return int(number[0]) * 1024  # written in KiB
    return 0
