"""params.yaml, typed: one model a section, every mistake one line that names the key.

`load()` returns a `Params`; a stage reads its own section of it. Unknown keys, wrong types and impossible values raise
`UserError` with exit code 2 before any work starts.

The sections themselves: sections.py, and variants.py for the rows of a training set.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, model_validator

from anamnesis.errors import UserError
from anamnesis.sections import (
    PUBLIC_SETS,
    SLUG,
    Budget,
    Converse,
    Distribution,
    Domain,
    Evaluate,
    Judge,
    Judging,
    Label,
    Member,
    Model,
    Price,
    Probe,
    Report,
    Requests,
    Section,
    Serve,
    Train,
)
from anamnesis.shares import DOMAIN, REHEARSAL, needs, share
from anamnesis.variants import BY_VOTES, Clean, Continued, Interpolation, Mix, Rehearsal, Select, Variant

RUBRIC_TOKENS = 600  # of the judge's prompt around conversation and response, at most


class Params(Section):
    seed: int
    target: str
    models: dict[str, Model]
    committee: dict[str, Member]
    judges: dict[str, Judge]
    judging: Judging = Judging()
    serve: Serve
    requests: Requests
    prices: dict[str, Price] = {}  # by model
    budget: Budget = Budget()
    domain: Domain
    probe: Probe
    converse: Converse = Converse()
    rehearsal: Rehearsal = Rehearsal()
    select: Select
    variants: dict[str, Variant]
    clean: Clean = Clean()
    mix: Mix
    train: Train
    continued: dict[str, Continued] = {}
    interpolations: dict[str, Interpolation] = {}
    evaluate: Evaluate
    distribution: Distribution = Distribution()
    report: Report

    @model_validator(mode="after")
    def _names_agree(self) -> "Params":
        for section in ("models", "committee", "judges", "variants", "continued", "interpolations"):
            for key in getattr(self, section):
                if not SLUG.fullmatch(key):
                    raise ValueError(f"{section}.{key}: a key is lower-case letters, digits and hyphens")
        for key in self.distribution.compare:
            if key in self.rehearsal_sources():
                raise ValueError(f"distribution.compare.{key}: a rehearsal source has the name, and is compared anyway")
        for section in ("variants", "continued", "interpolations"):
            if "base" in getattr(self, section):
                raise ValueError(f"{section}.base: the name is taken by the model before training")
        self._tuned_models_agree()
        for section in ("committee", "judges"):
            for key in getattr(self, section):
                if key not in self.models:
                    raise ValueError(f"{section}.{key}: no such entry under models")
        for section, named in (("prices", self.prices), ("requests.limits", self.requests.limits)):
            for key in named:
                if key not in self.models:
                    raise ValueError(f"{section}.{key}: no such entry under models")
        if self.budget.usd is not None:
            for key in {*self.members(), *self.enabled_judges()} - set(self.prices):
                if self.models[key].base_url:
                    raise ValueError(
                        f"budget.usd: models.{key} has no price; write prices.{key}: {{input: , output: }}"
                    )
        for key, entry in self.rehearsal.sources.items():
            if not SLUG.fullmatch(key) or key in ("reconstructed", "none", "probed", "domain"):
                raise ValueError(
                    f"rehearsal.sources.{key}: a key is lower-case letters, digits and hyphens, and none of "
                    "reconstructed, none, probed and domain"
                )
            if entry.source is None and key not in PUBLIC_SETS:
                raise ValueError(f"rehearsal.sources.{key}: needs `source`, path:<file> or hf:<repo>@<revision>")
        if self.target not in self.models:
            raise ValueError(f"target: {self.target!r} is no entry under models")
        if self.models[self.target].uri is None:
            raise ValueError(f"target: models.{self.target} has no `uri`, so there are no weights to fine-tune")
        if self.target not in self.members():
            raise ValueError(f"target: {self.target!r} must be an enabled member of the committee")
        for name, variant in self.tuned_variants().items():
            key_of = self.key_of(name)
            for field, known in (("members", self.committee), ("judges", self.judges)):
                for key in getattr(variant, field):
                    if key not in known:
                        raise ValueError(f"{key_of}.{field}: {key!r} is not there; known: {', '.join(known)}")
            for field, source in (("rehearsal", variant.source), ("instructions", variant.borrowed)):
                if source and source not in (*PUBLIC_SETS, *self.rehearsal.sources):
                    own = "reconstructed, none" if field == "rehearsal" else "probed"
                    sources = ", ".join(dict.fromkeys([own, *self.rehearsal.sources, *PUBLIC_SETS]))
                    raise ValueError(f"{key_of}.{field}: no source {source!r}; known: {sources}")
            if variant.source and (variant.members or variant.judges):
                raise ValueError(
                    f"{key_of}: the rows of {variant.source} are taken as they are, without members and judges; "
                    "for the committee's answers to its instructions write "
                    f"rehearsal: reconstructed, instructions: {variant.source}"
                )
            if variant.rehearsal == "reconstructed" and not set(variant.members) & set(self.members()):
                raise ValueError(f"{key_of}.members: none of them is enabled")
        return self

    @model_validator(mode="after")
    def _rules_can_pick(self) -> "Params":
        """A rule by votes needs judges that vote on its members, and a threshold something to hold against it."""
        for name, variant in self.tuned_variants().items():
            if variant.rehearsal != "reconstructed" or variant.rule not in BY_VOTES:
                continue
            voters = set(variant.judges) & set(self.enabled_judges())
            if not voters:
                raise ValueError(f"{self.key_of(name)}.judges: none of them is enabled")
            lonely = len(voters | set(variant.members) & set(self.members())) == 1
            if variant.rule == "leave-own-judge-out" and lonely:
                raise ValueError(
                    f"{self.key_of(name)}.judges: {', '.join(voters)} would judge itself alone, and rule: "
                    f"{variant.rule} counts no such vote; name another judge"
                )
            held_to = variant.thresholds(self.select)
            for field in ("min_score", "min_margin"):
                if held_to[field] and not held_to["min_votes"]:
                    raise ValueError(
                        f"{self.key_of(name)}.{field}: {held_to[field]:g} can't be held against a response without a "
                        "vote, which min_votes: 0 lets in; raise min_votes to 1"
                    )
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> "Params":
        """What no run could fill or fit is found here, before anything is asked or paid for."""
        probed, drawn = self.probe.instructions, self.rehearsal
        for name, variant in self.tuned_variants().items() if self.mix.unit == "examples" else ():
            fractions = self.fractions_of(name)
            parts = needs(self.mix.total, fractions, variant.rehearsal != "none")
            rehearsal, domain = parts.get(REHEARSAL, 0), parts.get(DOMAIN, 0)
            free, key = probed - share(probed, self.select.heldout), f"probe.instructions ({probed}) are not held out"
            if variant.source:
                free, key = drawn.rows, f"rehearsal.rows ({drawn.rows}) are drawn"
            elif variant.borrowed:
                free, key = drawn.instructions, f"rehearsal.instructions ({drawn.instructions}) are answered"
            if rehearsal > free:
                raise ValueError(
                    f"mix.total: {self.mix.total} x (1 - {sum(fractions.values()):g}) is {rehearsal} "
                    f"rehearsal rows for {self.key_of(name)}, and {free} of {key}; "
                    f"lower mix.total or raise {key.partition(' ')[0]}"
                )
            if domain > self.domain.train:
                raise ValueError(
                    f"mix.total: {self.key_of(name)} takes {domain} domain rows, and "
                    f"domain.train is {self.domain.train}; lower mix.total or raise domain.train"
                )
        wanted = {f"committee.{key}.sampling": member.sampling.max_tokens for key, member in self.committee.items()}
        wanted |= {f"judges.{key}": judge.max_tokens for key, judge in self.judges.items()}
        wanted["probe"] = self.probe.max_tokens
        for key, tokens in wanted.items():
            model = self.target if key == "probe" else key.split(".")[1]
            if self.models[model].base_url is None and tokens >= self.serve.max_model_len:
                raise ValueError(
                    f"{key}.max_tokens: {tokens} leaves no room for a prompt in serve.max_model_len "
                    f"({self.serve.max_model_len})"
                )
        if self.converse.share:
            self._conversations_fit()
        return self

    def _tuned_models_agree(self) -> None:
        """Continued variants, further seeds, interpolations and labels are of variants that there are."""
        self._chains_end()
        known = ", ".join(self.variants)
        for name in self.train.seeded:
            if name in self.continued:
                raise ValueError(
                    f"train.seeded: {name!r} starts from another variant's weights, and such are trained with the main "
                    "seed alone; take it off the list"
                )
            if name not in self.variants:
                raise ValueError(f"train.seeded: {name!r} is no variant; known: {known}")
        if self.seed in self.train.seeds:
            raise ValueError(f"train.seeds: {self.seed} is the main seed, which every variant is trained with anyway")
        tuned = self.tuned_variants()
        for name, interpolation in self.interpolations.items():
            if name in tuned:
                raise ValueError(f"interpolations.{name}: a variant has the name")
            if interpolation.variant not in tuned:
                raise ValueError(
                    f"interpolations.{name}.variant: {interpolation.variant!r} is no variant; known: {', '.join(tuned)}"
                )
        for name in self.report.labels:
            if name not in self.evaluated():
                raise ValueError(
                    f"report.labels.{name}: no such model in the report; known: {', '.join(self.evaluated())}"
                )

    def _chains_end(self) -> None:
        """Every continued variant has a name of its own and a domain that is there; its chain begins at a variant."""
        for name, variant in self.continued.items():
            if name in self.variants:
                raise ValueError(f"continued.{name}: a variant has the name")
            if variant.init not in self.tuned_variants():
                known = ", ".join(other for other in self.tuned_variants() if other != name)
                raise ValueError(f"continued.{name}.init: {variant.init!r} is no variant; known: {known}")
            if variant.domain is not None and variant.domain not in self.mix.domains:
                known = ", ".join(self.mix.domains) or "none"
                raise ValueError(
                    f"continued.{name}.domain: {variant.domain!r} is not under mix.domains; known: {known}"
                )
        for name in self.continued:
            chain = [name]
            while chain[-1] in self.continued:
                chain.append(self.continued[chain[-1]].init)
                if chain[-1] in chain[:-1]:
                    raise ValueError(f"continued.{name}.init: goes round in a circle: {' from '.join(chain)}")

    def tuned_variants(self) -> dict[str, Variant]:
        """Everything that is fine-tuned: the variants, then those that start from another one's weights."""
        return {**self.variants, **self.continued}

    def key_of(self, name: str) -> str:
        """The key of params.yaml that a variant stands under."""
        return f"continued.{name}" if name in self.continued else f"variants.{name}"

    def fractions_of(self, name: str) -> dict[str, float]:
        """`Mix.fractions` of one variant's training set."""
        return self.mix.fractions(self.continued[name].domain if name in self.continued else None)

    def named(self, script: str, arguments: Sequence[str], names: Sequence[str]) -> tuple[str, int | None]:
        """What a command line says: one of `names`, or a variant and one of its further seeds.

        Raises `UserError` for anything else.
        """
        match arguments:
            case [name] if name in names:
                return name, None
            case [name, seed] if (name, seed) in [(variant, str(number)) for variant, number in self.reseeded()]:
                return name, int(seed)
        further = ", ".join(f"{name} {seed}" for name, seed in self.reseeded())
        raise UserError(
            f"usage: python -m {script} <name> [seed]; names: {', '.join(names)}"
            + (f"; with further seeds: {further}" if further else "")
        )

    def evaluated(self) -> list[str]:
        """The models of the report, in its order: base, the variants, the continued ones, the interpolations."""
        return ["base", *self.tuned_variants(), *self.interpolations]

    def reseeded(self) -> list[tuple[str, int]]:
        """The further runs: variant and seed."""
        return [(variant, seed) for variant in self.train.seeded for seed in self.train.seeds]

    def label(self, name: str) -> Label:
        """What report.labels says of a model, which may be nothing."""
        return self.report.labels.get(name, Label())

    def rehearsal_sources(self) -> list[str]:
        """The sources that variants name, for rows or for instructions, each once."""
        named = [source for variant in self.tuned_variants().values() for source in (variant.source, variant.borrowed)]
        return list(dict.fromkeys(source for source in named if source))

    def _conversations_fit(self) -> None:
        """A grown conversation must leave room in a local model's context: for an answer, or for rubric and reply."""
        longest = max(member.sampling.max_tokens for member in self.committee.values())
        rooms = {f"committee.{key}": member.sampling.max_tokens for key, member in self.committee.items()}
        rooms |= {f"judges.{key}": RUBRIC_TOKENS + longest + judge.max_tokens for key, judge in self.judges.items()}
        for key, room in rooms.items():
            most = self.serve.max_model_len - room
            if self.models[key.split(".")[1]].base_url is None and self.converse.max_tokens > most:
                raise ValueError(
                    f"converse.max_tokens: {self.converse.max_tokens} leaves {key} too little room in "
                    f"serve.max_model_len ({self.serve.max_model_len}); lower it to {max(most, 0)} or raise that"
                )

    def members(self) -> list[str]:
        """The committee's keys whose model is enabled, in the order of params.yaml."""
        return [key for key in self.committee if key in self.models and self.models[key].enabled]

    def enabled_judges(self) -> list[str]:
        """The judges' keys whose model is enabled, in the order of params.yaml."""
        return [key for key in self.judges if key in self.models and self.models[key].enabled]


def _key(place: tuple[int | str, ...]) -> str:
    """The key that a mistake stands at, without pydantic's own steps (validators, branches of a union)."""
    return ".".join(str(part) for part in place if not re.search(r"[\[(]", str(part)))


def _one_line(error: ValidationError, path: Path) -> str:
    """The first mistake as `file: key: what`, with a count of the other keys; a misspelt key before a missing one."""
    errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    keys = [_key(one["loc"]) for one in errors]
    first, key = errors[0], keys[0]
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        siblings = {_key(one["loc"]): one["loc"][-1] for one in errors if one["type"] == "missing"}
        near = difflib.get_close_matches(key, siblings, 1)
        what = f"unknown key; did you mean {siblings[near[0]]}?" if near else "unknown key"
        keys = [other for other in keys if other not in near]
    elif first["type"] == "missing":
        what = "missing key"
    elif first["type"] in ("model_type", "dict_type"):
        what = "expected keys with values below it"
    elif isinstance(first["input"], str | int | float | bool) and not key.endswith("api_key_env"):  # it may be the key
        what += f" (found {first['input']!r})" if repr(first["input"]) not in what else ""
    more = f" (and {len(set(keys)) - 1} more)" if len(set(keys)) > 1 else ""
    return f"{path}: {key + ': ' if key else ''}{what}{more}"


class _NoDuplicates(yaml.SafeLoader):
    """YAML that refuses a key written twice in one mapping (the later one would win silently)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.YAMLError(
                    f"line {key_node.start_mark.line + 1}: a key must be plain text; quote {{{{ … }}}}"
                )
            if key_node.value in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: key {key_node.value!r} is written twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-4 as a string; people write learning rates so.
_NoDuplicates.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read(path: str | Path) -> dict[str, Any]:
    """A YAML file as plain dicts. Raises `UserError` (exit code 2) where it is none or has a key twice."""
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the project's root") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections, found {type(raw).__name__}")
    return raw


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml. Raises `UserError` (exit code 2) with one line that names the key."""
    try:
        return Params.model_validate(read(path))
    except ValidationError as error:
        raise UserError(_one_line(error, Path(path))) from None
