"""What would stop a later stage, found before a model is asked, so that nothing is paid for in vain.

In: params, and the files and packages that they name. Every stage that asks a model calls `check` first; as it changes
no output, no stage depends on the keys it looks at. What only rows can tell (their own licences, a broken file) is left
to the stages that read them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anamnesis import suites
from anamnesis.errors import FORBIDDEN_LICENCE, UserError
from anamnesis.params import Params
from anamnesis.public_sets import PUBLIC_SETS
from anamnesis.records import is_under
from anamnesis.variants import Source, Variant


def check(params: Params) -> None:
    """Raise `UserError` for a file, a package, a kind of personal data or a licence that will end the run later on."""
    rows_to_train_on(params)
    suites.check(params.evaluate)
    for name, source in params.clean.evaluation_sets.items():
        evaluation_set(name, source)
    if params.clean.personal_data:
        personal_data_library(params.clean.personal_data)
    check_licences(params)


def rows_to_train_on(params: Params) -> None:
    """Raise `UserError` with the files of domains, and of rehearsal sources that variants name, that are not there."""
    sources = {"domain.source": params.domain.source}
    sources |= {f"mix.domains.{name}.source": domain.source for name, domain in params.mix.domains.items()}
    for name in params.rehearsal_sources():
        sources[f"rehearsal.sources.{name}"] = params.rehearsal.sources.get(name, Source()).source or ""
    paths = {key: source.removeprefix("path:") for key, source in sources.items() if not source.startswith("hf:")}
    missing = [
        f"{key}: {path}"
        for key, path in paths.items()
        if (sources[key] != path or Path(path).suffix in (".jsonl", ".json", ".parquet")) and not Path(path).exists()
    ]
    if missing:
        raise UserError(
            f"{'; '.join(missing)}: no such file or folder; paths start at the project's root, {Path.cwd()}"
        )


def evaluation_set(name: str, source: str) -> Path:
    """Where the evaluation set `name` is. Raises `UserError` where there is nothing."""
    if not Path(source).exists():
        raise UserError(
            f"clean.evaluation_sets.{name}: {source}: no such file or folder; "
            f"paths start at the project's root, {Path.cwd()}"
        )
    return Path(source)


def personal_data_library(kinds: Sequence[str]) -> Any:
    """The module datafog_core. Raises `UserError` where it is not installed or doesn't know one of `kinds`."""
    try:
        import datafog_core
    except ImportError:
        raise UserError(
            "clean.personal_data: needs the package datafog-core, which is not installed; "
            "`pip install --no-deps datafog-core` in .venv, or set it to []"
        ) from None
    known = [kind for kind, what in datafog_core.capabilities()["entities"].items() if "text" in what["scopes"]]
    for kind in kinds:
        if kind not in known:
            raise UserError(f"clean.personal_data: {kind!r} is not known; known: {', '.join(sorted(known))}")
    return datafog_core


def check_licences(params: Params) -> None:
    """Raise `UserError` (exit code 8) where an author of a variant's rows is under a licence of mix.licences.forbid.

    Authors are models, and public sets under the licence that the registry or `rehearsal.sources` gives them.
    """
    found: dict[str, list[str]] = {}
    for name, variant in params.tuned_variants().items():
        for key, licence in _authors(params, variant).items():
            if is_under(licence, params.mix.licences.forbid):
                found.setdefault(f"{key} ({licence})", []).append(params.key_of(name))
    if found:
        named = "; ".join(f"{author} in {', '.join(variants)}" for author, variants in found.items())
        raise UserError(
            f"mix.licences.forbid: {named}; leave these out, or take the licence off the list", FORBIDDEN_LICENCE
        )


def _authors(params: Params, variant: Variant) -> dict[str, str]:
    """By key, the licences of those who write or wrote a variant's rehearsal rows; sources of your own are left out."""
    asked = [] if variant.rehearsal != "reconstructed" or variant.borrowed else [params.target]
    models = [*asked, *(key for key in variant.members if key in params.members())]
    authors = {f"models.{key}": params.models[key].licence for key in models}
    source = variant.source or variant.borrowed
    if source in PUBLIC_SETS:
        entry = params.rehearsal.sources.get(source, Source())
        authors[source] = entry.licence or PUBLIC_SETS[source].licence
    return authors
