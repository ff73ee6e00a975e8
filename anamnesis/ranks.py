"""The processes of a training run: starting them, joining them, ending with them. On a CPU they talk over gloo."""

import contextlib
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anamnesis.errors import UserError
from anamnesis.hardware import cores


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those of the run."""

    rank: int
    world: int
    device: str


def choose_accelerator() -> None:
    """Tell DeepSpeed to use the CPU where there is no GPU; to be called before transformers is imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def in_launched_process() -> bool:
    """Whether torchrun, or another launcher that sets its variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `python <arguments>` as `processes` ranks on this machine with torchrun's agent, and wait.

    Raises `SystemExit` with the exit code of the first rank that failed.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks' own words are enough
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(processes)))
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise SystemExit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


def _threads(processes: int) -> int:
    return max(1, len(cores()) // processes)


def _end_with_the_launcher() -> None:
    """End this rank when its launcher is gone: torchrun puts ranks in sessions of their own, and they would go on."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the run's processes, or be the only one; a `Ranks` for as long as the block lasts."""
    choose_accelerator()
    import logging

    import deepspeed
    import torch
    from transformers.utils import logging as transformers_logging

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its warnings are about choices made here on purpose
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    transformers_logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        torch.set_num_threads(_threads(local_world))
        # Otherwise DeepSpeed compiles a C++ extension on first use (minutes, needs g++). The name is not public: the
        # version is pinned and a test watches it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    if in_launched_process():
        _end_with_the_launcher()
        torch.distributed.init_process_group(backend)
    else:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    try:
        yield Ranks(rank, world, f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu")
    except UserError as error:
        if rank == 0:
            raise
        time.sleep(10)  # every rank finds the same mistake; the launcher ends this one when rank 0 has told it
        raise SystemExit(error.code) from None
    torch.distributed.destroy_process_group()
