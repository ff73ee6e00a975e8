"""params.yaml, typed: one model a section, every mistake one line that names the key.

`load()` returns a `Params`; a stage reads its own section of it. Unknown keys, wrong types and impossible values raise
`UserError` with exit code 2 before any work starts.
"""

import difflib
import re
import unicodedata
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from anamnesis.errors import UserError

SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")  # no dots: DVC splits keys on them
SHA256 = r"^[0-9a-f]{64}$"
HUB_URI = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)@([\w.-]+)")  # repository, revision
FOLDER_URI = re.compile(r"path:(.+)")
PYPI_URI = re.compile(r"pypi:([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)#(.+)")  # package, version, file in the wheel
HUB_DATA = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)@([\w./-]+)")  # repository, revision (refs/convert/parquet is one)
SERVER = re.compile(r"https?://[^/\s]\S*$")
ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
DOMAIN = "domain"  # the part of a mix, and the source, of the domain's rows; another domain's is domain:<name>
REHEARSAL = "rehearsal"  # the part of all other rows


def _uri(value: str | list[str]) -> str | list[str]:
    parts = [value] if isinstance(value, str) else value
    if not parts:
        raise ValueError("an empty list of parts")
    for part in parts:
        if not any(form.fullmatch(part) for form in (HUB_URI, FOLDER_URI, PYPI_URI)):
            raise ValueError(
                f"{part!r} is no model URI; write hf:<repo>@<revision>, path:<dir> or pypi:<package>==<version>#<file>"
            )
    return value


def _data_uri(value: str) -> str:
    if not any(form.fullmatch(value) for form in (HUB_DATA, FOLDER_URI)):
        raise ValueError(f"{value!r} is no data set; write path:<file or folder> or hf:<repo>@<revision>")
    return value


def _environment_name(value: str) -> str:
    if not ENVIRONMENT_NAME.fullmatch(value):
        raise ValueError(
            "write the name of an environment variable, like OPENAI_API_KEY (capitals, digits, _), never the key itself"
        )
    return value


def _script(value: str) -> str:
    if not value or not any(unicodedata.name(chr(code), "").startswith(value) for code in range(0x10000)):
        raise ValueError(f"{value!r} begins no Unicode character's name; write LATIN, CYRILLIC, GREEK, CJK, ARABIC …")
    return value


def _base_url(value: str | list[str]) -> str | list[str]:
    for url in [value] if isinstance(value, str) else value:
        try:
            urlsplit(url).port  # noqa: B018 (it raises where the address is none)
        except ValueError as error:
            raise ValueError(f"{url!r}: {error}") from None
        if not SERVER.match(url):
            raise ValueError(f"{url!r} is no server; write http(s)://host[:port]/v1, or a list of them")
    if len(set(value)) < len(value) and isinstance(value, list):
        raise ValueError("names one server twice")
    return value


RUBRIC_TOKENS = 600  # of the judge's prompt around conversation and response, at most

Uri = Annotated[str | list[str], AfterValidator(_uri)]
DataUri = Annotated[str, AfterValidator(_data_uri)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def share(count: int, fraction: float) -> int:
    """`count` x `fraction` rounded half up, on the decimal number that was written (0.35 x 10 is 3.5, so 4)."""
    return int((Decimal(count) * Decimal(repr(fraction))).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def needs(total: int, fractions: Mapping[str, float], rehearses: bool) -> dict[str, int]:
    """How much of `total` each part is: the domains in the order of `fractions`, and rehearsal where there is any.

    A variant without rehearsal is all domain, its domains in the proportion of their fractions. Rounded half up on the
    running sum, so that the parts add up exactly.
    """
    found, before, running = {}, 0, 0.0
    whole = 1.0 if rehearses else sum(fractions.values()) or 1.0
    for part, fraction in fractions.items():
        running += fraction
        upto = share(total, round(running / whole, 12))
        found[part], before = upto - before, upto
    if rehearses:
        return {**found, REHEARSAL: total - before}
    return found if before else {**found, DOMAIN: total}


class Section(BaseModel):
    """A section of params.yaml: unknown keys are mistakes, values are not coerced from strings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    """Where a model comes from: weights (`uri`), a server (`base_url`), or weights that a server already serves."""

    enabled: bool = True
    uri: Uri | None = None  # a list: the parts of one file, joined in this order
    sha256: str | None = Field(None, pattern=SHA256)
    licence: str = "unknown"
    base_url: Annotated[str | Annotated[list[str], Field(min_length=1)], AfterValidator(_base_url)] | None = None
    model: str | None = None
    mode: Literal["online", "batch"] = "online"  # batch: the OpenAI Batch API, answers within a day at a lower price
    samples_per_request: Positive = 1  # more: `n` samples of one prompt in one request, where the server has that
    api_key_env: Annotated[str, AfterValidator(_environment_name)] | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _has_a_source(self) -> "Model":
        if self.uri is None and self.base_url is None:
            raise ValueError("needs `uri` (weights to load) or `base_url` with `model` (a server to ask)")
        if self.base_url and not self.model:
            raise ValueError("`base_url` needs `model`, the name the server knows it by")
        if self.mode == "batch" and not self.base_url:
            raise ValueError("`mode: batch` needs `base_url`, a server with OpenAI's Batch API")
        if isinstance(self.uri, list) and not all(part.startswith("pypi:") for part in self.uri):
            raise ValueError("only pypi: URIs can be parts of one file")
        return self

    @property
    def base_urls(self) -> list[str]:
        """The servers that have the model; the first one names it in the ledger, the others are replicas."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url or []


class Sampling(Section):
    """How a member answers: nucleus sampling, `samples` responses an instruction."""

    samples: Positive = 3
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_tokens: Positive = 256
    system: str | None = None  # None: the template's own default


class Member(Section):
    sampling: Sampling = Sampling()


class Judge(Section):
    """How a judge scores: `justify` writes a reason and a score line, `score` that line alone, `expected` reads the
    probabilities of its rating.
    """

    mode: Literal["expected", "score", "justify"] = "expected"
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Positive = 200


class Judging(Section):
    """What holds for every judge."""

    control: Fraction = 0.5  # share of judged instructions that get planted pairs as well
    min_parse_rate: Fraction = 0.8  # of replies that hold a score, below which stage judge fails


class Domain(Section):
    """The domain set: `icd10cm` (built here), a JSONL/Parquet file, or hf:<repo>@<revision>."""

    source: str = "icd10cm"
    train: Positive = 400
    test: Positive = 60
    licence: str = "unknown"


class Canary(Section):
    size: Positive = 32
    min_pass: Fraction = 0.6


class Probe(Section):
    instructions: Positive
    max_requests: Positive
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_tokens: Positive = 128
    system: str | None = None
    prefix: str | None = None  # overrides the derived pre-query prefix
    scripts: Annotated[list[Annotated[str, AfterValidator(_script)]], Field(min_length=1)] = ["LATIN"]
    min_words: Positive = 3
    canary: Canary = Canary()

    @model_validator(mode="after")
    def _can_reach_the_goal(self) -> "Probe":
        if self.max_requests < self.instructions:
            raise ValueError(f"max_requests ({self.max_requests}) is below instructions ({self.instructions})")
        return self


class Turns(Section):
    """How many user's turns a grown conversation has, drawn evenly."""

    min: Annotated[int, Field(ge=2)] = 2
    max: Annotated[int, Field(ge=2)] = 5

    @model_validator(mode="after")
    def _in_order(self) -> "Turns":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class SystemMessage(Section):
    """One of the system messages that instructions draw from; `text` null leaves each member its own."""

    text: Annotated[str, Field(min_length=1)] | None
    weight: Annotated[float, Field(gt=0)] = 1.0


class Converse(Section):
    """Which instructions grow to conversations, and the system messages that instructions draw."""

    share: Fraction = 0.0
    turns: Turns = Turns()
    max_tokens: Positive = 512  # of a conversation before its last answer, by the target's tokenizer
    systems: list[SystemMessage] = []

    @model_validator(mode="after")
    def _systems_differ(self) -> "Converse":
        texts = [one.text for one in self.systems]
        if len(set(texts)) < len(texts):
            raise ValueError("`systems` has one text twice; write it once, with the sum of the weights")
        return self


class Serve(Section):
    """The local vLLM server; these change what it returns, so stages depend on them."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"  # auto: bfloat16 where it is fast
    max_model_len: Annotated[int, Field(ge=256)] = 2048
    vllm_args: list[str] = []


class RateLimit(Section):
    """What an account may send: None is no limit."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None  # prompt and completion


class Requests(Section):
    """How requests are sent; nothing here changes an answer, so no stage depends on it."""

    concurrency: Positive = 32  # requests at once to one server, at most
    limits: dict[str, RateLimit] = {}  # by model
    batch_poll_s: Annotated[float, Field(gt=0)] = 30.0  # between two looks at a batch
    timeout_s: Annotated[float, Field(gt=0)] = 600.0
    retries: Annotated[int, Field(ge=0)] = 8
    failure_budget: Fraction = 0.1  # of finished rows, never triggered by fewer than 20 failures
    server_start_s: Annotated[float, Field(gt=0)] = 600.0
    kv_cache_gib: Positive = 2


PUBLIC_SETS = (  # what each is: anamnesis/public_sets.py
    "sharegpt",
    "evol-instruct",
    "genqa",
    "openhermes-1",
    "openhermes-2-5",
    "tulu-v2-mix",
    "wildchat",
    "ultrachat-200k",
)


class Source(Section):
    """Rehearsal rows of your own, or another copy of a public set: then only what differs is named."""

    source: DataUri | None = None  # None: a public set from the hub
    licence: str | None = None  # of rows that name none themselves
    form: Literal["messages", "sharegpt", "alpaca"] | None = None  # None: found by the columns
    config: str | None = None  # of a hub data set
    splits: Annotated[list[str], Field(min_length=1)] | None = None


class Rehearsal(Section):
    """Rows drawn from the sources that variants name, in a seeded order over the whole source."""

    rows: Positive = 1000  # good ones of each source
    instructions: Positive = 24  # of a source that gives only its instructions: so many are answered and judged
    read: Positive | None = None  # rows of each split to draw from, its first ones; None: all of them
    turns: Literal["first", "all"] = "first"
    max_characters: Positive = 4000
    sources: dict[str, Source] = {}


Votes = Annotated[int, Field(ge=0)]
Score = Annotated[float, Field(ge=0, le=5)]  # votes are 1..5: 0 is no minimum
Tie = Annotated[float, Field(ge=0, lt=1)]
BY_VOTES = ("mean", "median", "leave-own-judge-out")  # rules with a value; the others look at no vote


class Select(Section):
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.15  # of instructions, never trained on: the model's own text
    min_votes: Votes = 1
    min_score: Score = 0.0
    min_margin: Score = 0.0
    tie: Tie = 0.0


THRESHOLDS = ("min_votes", "min_score", "min_margin", "tie")


class Variant(Section):
    """One fine-tuning run: where its rehearsal rows come from and how they are picked."""

    rehearsal: str  # reconstructed, none, or a source whose rows are taken as they are
    instructions: str = "probed"  # or a source whose first user turns the committee answers
    members: list[str] = []
    judges: list[str] = []
    samples: Positive = 3
    rule: Literal["mean", "median", "leave-own-judge-out", "first", "random"] = "mean"
    min_votes: Votes | None = None  # None, here and below: as in section select
    min_score: Score | None = None
    min_margin: Score | None = None
    tie: Tie | None = None

    @model_validator(mode="after")
    def _is_complete(self) -> "Variant":
        for field, names in (("members", self.members), ("judges", self.judges)):
            if len(set(names)) < len(names):
                raise ValueError(f"`{field}` names one twice: {', '.join(names)}")
        if self.instructions != "probed" and self.rehearsal != "reconstructed":
            raise ValueError("`instructions` of a source are answered by the committee: write rehearsal: reconstructed")
        if self.rehearsal == "reconstructed" and not self.members:
            raise ValueError("rehearsal: reconstructed needs `members`")
        if self.rehearsal == "reconstructed" and self.rule in BY_VOTES and not self.judges:
            raise ValueError(f"rule: {self.rule} needs `judges`")
        for field in THRESHOLDS:
            if getattr(self, field) is not None and self.rule not in BY_VOTES:
                raise ValueError(f"`{field}` says nothing under rule: {self.rule}, which looks at no vote")
        return self

    @property
    def source(self) -> str | None:
        """The source whose rows are taken as they are; None where the committee answers, or nothing is rehearsed."""
        return self.rehearsal if self.rehearsal not in ("reconstructed", "none") else None

    @property
    def borrowed(self) -> str | None:
        """The source whose instructions the committee answers; None where the target was probed for them."""
        return self.instructions if self.instructions != "probed" else None

    def thresholds(self, select: Select) -> dict[str, Any]:
        """min_votes, min_score, min_margin and tie: its own, or else those of section select."""
        own = {field: getattr(self, field) for field in THRESHOLDS}
        return {field: getattr(select, field) if value is None else value for field, value in own.items()}


class Clean(Section):
    """What is taken out of the rows before the mix; overlap with evaluation items always is."""

    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8  # Jaccard of word triples; None: kept
    evaluation_sets: dict[str, str] = {}  # name: JSONL or Parquet file, or a folder of such, beside our own suite
    truncated: bool = True  # by the text, where no finish reason is known
    refused: bool = True
    languages: list[str] = []  # codes of py3langid, like en; empty: all
    personal_data: list[str] = []  # kinds of datafog-core, like EMAIL; empty: not looked for

    @model_validator(mode="after")
    def _names_are_free(self) -> "Clean":
        for name in self.evaluation_sets:
            if not SLUG.fullmatch(name):
                raise ValueError(f"evaluation_sets.{name}: a name is lower-case letters, digits and hyphens")
            if name in ("domain-test", "heldout") or name.startswith("embedded-"):
                raise ValueError(f"evaluation_sets.{name}: the name is taken by a set of our own")
        return self


class OtherDomain(Section):
    """Rows of another domain beside the main one: what the model learnt before, say."""

    source: str  # a JSONL or Parquet file, or hf:<repo>@<revision>
    fraction: Fraction
    licence: str = "unknown"


class Licences(Section):
    forbid: list[str] = []  # names, with * and ?; case doesn't matter


class Mix(Section):
    domain_fraction: Fraction
    total: Positive  # of every variant's training set, in `unit`
    unit: Literal["examples", "tokens"] = "examples"
    domains: dict[str, OtherDomain] = {}
    licences: Licences = Licences()

    @model_validator(mode="after")
    def _domains_fit(self) -> "Mix":
        for name in self.domains:
            if not SLUG.fullmatch(name):
                raise ValueError(f"domains.{name}: a name is lower-case letters, digits and hyphens")
        fractions = self.fractions().values()
        if sum(fractions) > 1 + 1e-9:
            raise ValueError(
                f"domain_fraction and domains.*.fraction add up to {sum(fractions):g}, which is more than 1"
            )
        return self

    def fractions(self) -> dict[str, float]:
        """The share of each domain in a training set with rehearsal, by the source its rows are mixed under."""
        others = {f"{DOMAIN}:{name}": domain.fraction for name, domain in self.domains.items()}
        return {DOMAIN: self.domain_fraction, **others}


class Train(Section):
    learning_rate: Annotated[float, Field(gt=0)]
    epochs: Positive = 1
    global_batch: Positive = 8  # sequences an optimiser step, over all ranks
    micro_batch: Positive = 1  # sequences a forward pass on one rank
    sequence_length: Annotated[int, Field(ge=32)] = 512
    warmup_fraction: Fraction = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    zero: Literal[0, 1, 2, 3] = 0
    processes: Positive = 1  # > 1: started with torchrun on this machine
    packing: bool = True
    checkpoint_steps: Positive = 10

    @model_validator(mode="after")
    def _splits(self) -> "Train":
        if self.global_batch % (self.micro_batch * self.processes):
            raise ValueError(
                f"global_batch ({self.global_batch}) is not a multiple of "
                f"micro_batch x processes ({self.micro_batch} x {self.processes})"
            )
        return self


class Evaluate(Section):
    """Items per measure, the same for base and every variant."""

    suite: Literal["embedded"] = "embedded"
    domain_choice: Positive = 60
    domain_exact: Positive = 30
    instructions_followed: Positive = 24
    arithmetic: Positive = 40
    text_items: Positive = 40  # at most, for each bits-per-byte set
    batch_size: Positive = 8
    max_tokens: Positive = 128


class Distribution(Section):
    """Which sets the reconstructed instructions are held against, and how many of each are looked at."""

    compare: dict[str, str] = {}  # a name and a JSONL or Parquet file
    sample: Annotated[int, Field(ge=2)] = 1000  # instructions of a set, at most
    likelihood: Annotated[int, Field(ge=0)] = 100  # of these, so many have their bits per byte measured
    resamples: Annotated[int, Field(ge=100)] = 1000  # of an interval, and permutations of a test

    @model_validator(mode="after")
    def _names_are_free(self) -> "Distribution":
        for key in self.compare:
            if not SLUG.fullmatch(key) or key in ("reconstructed", "halves"):
                raise ValueError(
                    f"compare.{key}: a key is lower-case letters, digits and hyphens, not reconstructed or halves"
                )
        return self


class Report(Section):
    bootstrap: Annotated[int, Field(ge=100)] = 2000  # resamples an interval


class Price(Section):
    """US dollars for a million tokens, as the provider charges them for the mode in use."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class Budget(Section):
    """A hard cap over everything in the ledger and under way; None is no cap. No stage depends on it."""

    usd: Annotated[float, Field(ge=0)] | None = None
    requests: Annotated[int, Field(ge=0)] | None = None
    tokens: Annotated[int, Field(ge=0)] | None = None


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
    evaluate: Evaluate
    distribution: Distribution = Distribution()
    report: Report

    @model_validator(mode="after")
    def _names_agree(self) -> "Params":
        for section in ("models", "committee", "judges", "variants"):
            for key in getattr(self, section):
                if not SLUG.fullmatch(key):
                    raise ValueError(f"{section}.{key}: a key is lower-case letters, digits and hyphens")
        for key in self.distribution.compare:
            if key in self.rehearsal_sources():
                raise ValueError(f"distribution.compare.{key}: a rehearsal source has the name, and is compared anyway")
        if "base" in self.variants:
            raise ValueError("variants.base: the name is taken by the model before training")
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
        for name, variant in self.variants.items():
            for field, known in (("members", self.committee), ("judges", self.judges)):
                for key in getattr(variant, field):
                    if key not in known:
                        raise ValueError(f"variants.{name}.{field}: {key!r} is not there; known: {', '.join(known)}")
            for field, source in (("rehearsal", variant.source), ("instructions", variant.borrowed)):
                if source and source not in (*PUBLIC_SETS, *self.rehearsal.sources):
                    own = "reconstructed, none" if field == "rehearsal" else "probed"
                    sources = ", ".join(dict.fromkeys([own, *self.rehearsal.sources, *PUBLIC_SETS]))
                    raise ValueError(f"variants.{name}.{field}: no source {source!r}; known: {sources}")
            if variant.source and (variant.members or variant.judges):
                raise ValueError(
                    f"variants.{name}: the rows of {variant.source} are taken as they are, without members and judges; "
                    "for the committee's answers to its instructions write "
                    f"rehearsal: reconstructed, instructions: {variant.source}"
                )
            if variant.rehearsal == "reconstructed" and not set(variant.members) & set(self.members()):
                raise ValueError(f"variants.{name}.members: none of them is enabled")
        return self

    @model_validator(mode="after")
    def _rules_can_pick(self) -> "Params":
        """A rule by votes needs judges that vote on its members, and a threshold something to hold against it."""
        for name, variant in self.variants.items():
            if variant.rehearsal != "reconstructed" or variant.rule not in BY_VOTES:
                continue
            voters = set(variant.judges) & set(self.enabled_judges())
            if not voters:
                raise ValueError(f"variants.{name}.judges: none of them is enabled")
            lonely = len(voters | set(variant.members) & set(self.members())) == 1
            if variant.rule == "leave-own-judge-out" and lonely:
                raise ValueError(
                    f"variants.{name}.judges: {', '.join(voters)} would judge itself alone, and rule: {variant.rule} "
                    "counts no such vote; name another judge"
                )
            held_to = variant.thresholds(self.select)
            for field in ("min_score", "min_margin"):
                if held_to[field] and not held_to["min_votes"]:
                    raise ValueError(
                        f"variants.{name}.{field}: {held_to[field]:g} can't be held against a response without a vote, "
                        "which min_votes: 0 lets in; raise min_votes to 1"
                    )
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> "Params":
        """What no run could fill or fit is found here, before anything is asked or paid for."""
        probed, drawn = self.probe.instructions, self.rehearsal
        fractions = self.mix.fractions()
        for name, variant in self.variants.items() if self.mix.unit == "examples" else ():
            parts = needs(self.mix.total, fractions, variant.rehearsal != "none")
            rehearsal, domain = parts.get(REHEARSAL, 0), parts[DOMAIN]
            free, key = probed - share(probed, self.select.heldout), f"probe.instructions ({probed}) are not held out"
            if variant.source:
                free, key = drawn.rows, f"rehearsal.rows ({drawn.rows}) are drawn"
            elif variant.borrowed:
                free, key = drawn.instructions, f"rehearsal.instructions ({drawn.instructions}) are answered"
            if rehearsal > free:
                raise ValueError(
                    f"mix.total: {self.mix.total} x (1 - {sum(fractions.values()):g}) is {rehearsal} "
                    f"rehearsal rows for variants.{name}, and {free} of {key}; "
                    f"lower mix.total or raise {key.partition(' ')[0]}"
                )
            if domain > self.domain.train:
                raise ValueError(
                    f"mix.total: variants.{name} takes {domain} domain rows, and "
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

    def rehearsal_sources(self) -> list[str]:
        """The sources that variants name, for rows or for instructions, each once."""
        named = [source for variant in self.variants.values() for source in (variant.source, variant.borrowed)]
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
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+0123456789.")
)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml. Raises `UserError` (exit code 2) with one line that names the key."""
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
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise UserError(_one_line(error, path)) from None
