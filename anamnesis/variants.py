"""The typed sections of params.yaml that say which rows a variant is trained on.

Where rehearsal rows come from, how responses are picked, what is cleaned out, what is mixed with the domain, and how
the weights are tuned on it.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from anamnesis.sections import FOLDER_URI, SLUG, Fraction, Licence, Positive, Section
from anamnesis.shares import DOMAIN

HUB_DATA = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)@([\w./-]+)")  # repository, revision (refs/convert/parquet is one)
BY_VOTES = ("mean", "median", "leave-own-judge-out")  # rules with a value; the others look at no vote
LANGUAGES = (  # py3langid's, which takes a second to say so: tests/test_foresight.py holds them against it
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr "
    "fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko "
    "ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru "
    "rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo "
    "yue zh zu zxx"
).split()
THRESHOLDS = ("min_votes", "min_score", "min_margin", "tie")


def _data_uri(value: str) -> str:
    if not any(form.fullmatch(value) for form in (HUB_DATA, FOLDER_URI)):
        raise ValueError(f"{value!r} is no data set; write path:<file or folder> or hf:<repo>@<revision>")
    return value


def _language(value: str) -> str:
    if value not in LANGUAGES:
        raise ValueError(f"{value!r} is not known; known: {', '.join(LANGUAGES)}")
    return value


DataUri = Annotated[str, AfterValidator(_data_uri)]
Votes = Annotated[int, Field(ge=0)]
Score = Annotated[float, Field(ge=0, le=5)]  # votes are 1..5: 0 is no minimum
Tie = Annotated[float, Field(ge=0, lt=1)]


class Source(Section):
    """Rehearsal rows of your own, or another copy of a public set: then only what differs is named."""

    source: DataUri | None = None  # None: a public set from the hub
    licence: Licence | None = None  # of rows that name none themselves
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


class Select(Section):
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.15  # of instructions, never trained on: the model's own text
    min_votes: Votes = 1
    min_score: Score = 0.0
    min_margin: Score = 0.0
    tie: Tie = 0.0


class Full(Section):
    """All weights, nothing that holds them back: the paper's."""

    method: Literal["full"] = "full"


class Lora(Section):
    """Low-rank adapters beside frozen weights (Hu et al. 2021), added to them in the export."""

    method: Literal["lora"] = "lora"
    rank: Positive = 16
    alpha: Positive = 32  # the adapters' product is scaled by alpha / rank
    targets: Annotated[list[str], Field(min_length=1)] | None = None  # names of linear layers; None: all but the head
    learning_rate: Annotated[float, Field(gt=0)] | None = None  # None: train.learning_rate; adapters take more


class L2SP(Section):
    """All weights, each pulled towards its start by strength / 2 · (w - w0)² (Li et al. 2018)."""

    method: Literal["l2-sp"] = "l2-sp"
    strength: Annotated[float, Field(gt=0)] = 0.01


class KL(Section):
    """All weights, with strength · KL(base || tuned) a trained-on token in the loss (after Li & Hoiem 2016)."""

    method: Literal["kl"] = "kl"
    strength: Annotated[float, Field(gt=0)] = 1.0


Method = Full | Lora | L2SP | KL
FULL = Full()
Tuning = Annotated[
    Annotated[Method, Field(discriminator="method")],
    BeforeValidator(lambda value: {"method": value} if isinstance(value, str) else value),
]


class Interpolation(Section):
    """A model between base and a variant, without training: (1 - alpha) · base + alpha · tuned."""

    variant: str
    alpha: Fraction


class Variant(Section):
    """One fine-tuning run: where its rehearsal rows come from, how they are picked, and what is trained."""

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
    tuning: Tuning = FULL

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


class Continued(Variant):
    """A variant that starts from another one's weights: the next of a chain of domains."""

    init: str  # a variant, or another continued one
    domain: str | None = None  # a key of mix.domains, whose rows take the main domain's place; None: that one again


class Clean(Section):
    """What is taken out of the rows before the mix; overlap with evaluation items always is."""

    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8  # Jaccard of word triples; None: kept
    evaluation_sets: dict[str, str] = {}  # name: JSONL or Parquet file, or a folder of such, beside our own suite
    truncated: bool = True  # by the text, where no finish reason is known
    refused: bool = True
    languages: list[Annotated[str, AfterValidator(_language)]] = []  # like en; empty: all
    personal_data: list[str] = []  # kinds of datafog-core, like EMAIL; empty: not looked for

    @model_validator(mode="after")
    def _names_are_free(self) -> "Clean":
        for name in self.evaluation_sets:
            if not SLUG.fullmatch(name):
                raise ValueError(f"evaluation_sets.{name}: a name is lower-case letters, digits and hyphens")
            if name in ("domain-test", "heldout", "safety") or name.startswith(("embedded-", "local-", "domain-set-")):
                raise ValueError(f"evaluation_sets.{name}: the name is taken by a set of our own")
        return self


class OtherDomain(Section):
    """Rows of another domain beside the main one: what the model learnt before, say."""

    source: str  # a JSONL or Parquet file, or hf:<repo>@<revision>
    fraction: Fraction
    licence: Licence = "unknown"


class Licences(Section):
    forbid: list[Licence] = []  # names, with * and ?; case doesn't matter


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

    def fractions(self, instead: str | None = None) -> dict[str, float]:
        """The share of each domain in a training set with rehearsal, by the source its rows are mixed under.

        `instead`: the domain whose rows take the main domain's place and share, in the place of a share of their own.
        """
        others = {f"{DOMAIN}:{name}": domain.fraction for name, domain in self.domains.items() if name != instead}
        return {DOMAIN if instead is None else f"{DOMAIN}:{instead}": self.domain_fraction, **others}
