"""What this machine has: free memory, GPUs, and NVIDIA's guardrail."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any

from theworld.world_models import guardrail


def gpus() -> list[dict[str, Any]]:
    """Name, total and free memory of each GPU that torch can use."""
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append({"name": torch.cuda.get_device_name(index), "total_bytes": total, "free_bytes": free})
    return found


def free_ram() -> int | None:
    """Bytes of RAM that a new process can allocate, within this container's limit; None if the system does not tell."""
    free: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free.append(1024 * int(line.split()[1]))
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            free.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    except OSError:  # not Linux, or no such control group
        pass
    if not free and "SC_PHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free)) if free else None


def guardrail_version() -> str | None:
    """Version of NVIDIA's guardrail, None if it is not installed. It is not imported: that would disable autograd."""
    if importlib.util.find_spec(guardrail.PACKAGE) is None:
        return None
    try:
        return importlib.metadata.version(guardrail.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"
