"""The processes of a training run: starting them, joining them, ending with them. On a CPU they talk over gloo."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import psutil

from anamnesis import hardware
from anamnesis.errors import UserError
from anamnesis.progress import say
from anamnesis.sections import Train

DEEPSPEED = "deepspeed.launcher.runner"  # what the command `deepspeed` runs
LAUNCHER = "ANAMNESIS_LAUNCHER"  # names, to ranks, the process that waits for them behind DeepSpeed's two launchers


SHUTDOWN_S = 600  # how long torchrun's agent leaves ranks for a checkpoint after SIGTERM
PATIENCE = timedelta(hours=4)  # how long ranks wait for one: rank 0 writes the export alone, of 70B for an hour or so
LEFT_ALONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo's words


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


def local_world(world: int) -> int:
    """How many of a run's `world` processes are on this machine, as torchrun or DeepSpeed's launcher says it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)


def needs_launch(settings: Train) -> bool:
    """Whether this process has to start those of the run, rather than to be one of them."""
    if in_launched_process():
        world = int(os.environ["WORLD_SIZE"])
        if world != settings.processes and os.environ["RANK"] == "0":
            say(f"train: WORLD_SIZE is {world}: that many processes, and not train.processes ({settings.processes})")
        return False
    return settings.processes > 1 or settings.launch != "auto"


def launch(settings: Train, module: str, arguments: Sequence[str]) -> None:
    """Run `python -m <module> <arguments>` in `train.processes` ranks, with the launcher that params name, and wait.

    The ranks get SIGTERM and Ctrl-C as well. Raises `SystemExit` with the exit code of the first rank that failed, and
    `UserError` where they can't be started.
    """
    if settings.launch == "deepspeed":
        _launch_by_deepspeed(settings, module, arguments)
    else:
        launch_by_torchrun(settings.processes, ["-m", module, *arguments])


def hosts_of(settings: Train) -> dict[str, int]:
    """The processes of each machine of `train.hostfile`, a line `<host> slots=<processes>` each; empty without one.

    Raises `UserError` where it can't be read, or says something else than `train.processes`.
    """
    import logging

    hostfile = settings.hostfile
    if not hostfile:
        return {}
    if not os.path.isfile(hostfile):
        raise UserError(f"train.hostfile: no file {hostfile}; write a line <host> slots=<processes> for each machine")
    from deepspeed.launcher import runner

    logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)  # it would print the mistake too
    try:
        hosts = dict(runner.fetch_hostfile(hostfile))
    except ValueError as error:
        raise UserError(f"{hostfile}: {' '.join(str(error).split())}; a line is <host> slots=<processes>") from None
    if sum(hosts.values()) != settings.processes:
        raise UserError(
            f"train.processes is {settings.processes} and {hostfile} has {sum(hosts.values())} slots; make them equal"
        )
    return hosts


def _launch_by_deepspeed(settings: Train, module: str, arguments: Sequence[str]) -> None:
    """DeepSpeed's launcher: over ssh and pdsh with a hostfile of several machines, else on this one."""
    command = [sys.executable, "-m", DEEPSPEED, "--log_level", "error", "--no_local_rank", "--module"]
    if settings.hostfile:
        hosts = hosts_of(settings)
        if len(hosts) > 1 and not shutil.which("pdsh"):
            raise UserError(f"{settings.hostfile}: several machines are started by pdsh, which isn't there; install it")
        command += ["--hostfile", settings.hostfile]
    else:
        command += ["--hostfile", os.devnull, "--num_gpus", str(settings.processes)]
        command += ["--master_port", str(hardware.free_port())]
    told: list[int] = []
    below: list[psutil.Process] = []
    environment = os.environ | {LAUNCHER: str(os.getpid())}
    process = subprocess.Popen([*command, module, *arguments], start_new_session=True, env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        below.extend(psutil.Process(process.pid).children(recursive=True))
        os.killpg(process.pid, number)  # the launcher, and on this machine its ranks, which may save a checkpoint

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    code = process.wait()
    while any(map(_is_there, below)):  # it ends before its ranks do, which may still be saving
        time.sleep(0.1)
    for number, handler in before.items():
        signal.signal(number, handler)
    if code:
        raise SystemExit(128 + told[0] if told else code if code > 0 else 128 - code)


def launch_by_torchrun(processes: int, arguments: Sequence[str]) -> None:
    """torchrun's agent, on this machine."""
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
        shutdown_timeout=SHUTDOWN_S,
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
    return max(1, len(hardware.cores()) // processes)


def _end_quietly(number: int, frame: FrameType | None) -> None:
    """After SIGTERM outside the steps: rank 0 speaks for all, and nothing is left to clear up."""
    os._exit(128 + number)


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_with_the_launcher() -> None:
    """End this rank when its launcher is gone: launchers put ranks in sessions of their own, and they would go on."""
    above = psutil.Process().parents()  # on another machine the process that waits for all is not among them
    watched = [process for process in above if process.pid in (os.getppid(), int(os.environ.get(LAUNCHER, "0")))]

    def watch() -> None:
        while all(map(_is_there, watched)):
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
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        torch.set_num_threads(_threads(local_world(world)))
        # Otherwise DeepSpeed compiles a C++ extension on first use (minutes, needs g++). The name is not public: the
        # version is pinned and a test watches it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if rank:
        signal.signal(signal.SIGTERM, _end_quietly)
    backend = "nccl" if on_gpu else "gloo"
    if in_launched_process():
        _end_with_the_launcher()
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    else:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    try:
        yield Ranks(rank, world, f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu")
    except UserError as error:
        if rank == 0:
            raise
        time.sleep(10)  # most mistakes every rank finds; the launcher ends this one when rank 0 has told it
        say(f"error: rank {rank}: {error}")
        os._exit(error.code)  # before its connections close and others end of that
    except RuntimeError as error:
        if world == 1 or not any(words in str(error) for words in LEFT_ALONE):
            raise
        if rank == 0:
            say("error: another process of this run has ended; what it could say of the reason stands above")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the launcher's, which would be told as another mistake
        time.sleep(5)  # the launcher takes the code of the one that ends first
        os._exit(1)
    torch.distributed.destroy_process_group()
