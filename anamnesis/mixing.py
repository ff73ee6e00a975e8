"""A variant's training set: domain rows and rehearsal rows, exact in number, never one twice.

In: the domain's training rows, a variant's picks, `mix.total` and `mix.domain_fraction`. Out: rows of `records.MIXED`,
or one line that says which pool is too small and which numbers would do.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import sql
from anamnesis.errors import POOL_TOO_SMALL, UserError
from anamnesis.params import share
from anamnesis.records import CONVERSATIONS, MIXED

Message = dict[str, str]


@dataclass(frozen=True)
class Writer:
    """A member of the committee as the author of rows: its model's licence and the system message it answered under."""

    licence: str
    system: str | None = None


def needs(total: int, fraction: float, rehearsal: bool) -> tuple[int, int]:
    """How many domain and how many rehearsal rows a variant takes; a variant without rehearsal is all domain."""
    domain = share(total, fraction) if rehearsal else total
    return domain, total - domain


def check_pools(
    total: int, fraction: float, domain: int, rehearsal: Mapping[str, int | None], instructions: int, train: int
) -> None:
    """Raise `UserError` (exit code 6) for the first variant that the pools don't fill.

    `domain` is the number of domain rows, `rehearsal` that of kept instructions by variant (None: no rehearsal);
    `instructions` and `train` are probe.instructions and domain.train, for the advice. The total it names fits every
    variant.
    """

    def fits(size: int, have: int | None) -> bool:
        learnt, rehearsed = needs(size, fraction, have is not None)
        return learnt <= domain and rehearsed <= (have or 0)

    if all(fits(total, have) for have in rehearsal.values()):
        return
    fitting = next((n for n in range(total - 1, 0, -1) if all(fits(n, have) for have in rehearsal.values())), 0)
    lower = [f"lower mix.total to {fitting}"] if fitting else []

    for variant, have in rehearsal.items():
        learnt, rehearsed = needs(total, fraction, have is not None)
        if learnt > domain:
            how = f"mix.total {total} x {fraction:g}" if have is not None else f"mix.total {total}, rehearsal: none"
            most = max(needs(total, fraction, other is not None)[0] for other in rehearsal.values())
            what, there, fixes = f"{learnt} domain rows", domain, [f"raise domain.train from {train} to {most}"]
        elif have is not None and rehearsed > have:
            what, how, there = f"{rehearsed} rehearsal rows", f"mix.total {total} x (1 - {fraction:g})", have
            about = math.ceil(instructions * rehearsed / have) if have else 0
            fixes = [f"raise probe.instructions from {instructions} to about {about}"] if have else []
        else:
            continue
        advice = " or ".join(lower + fixes) or "metrics/select.json says why every instruction was dropped"
        raise UserError(
            f"variants.{variant}: {what} are needed ({how}) and {there} are there; {advice}", POOL_TOO_SMALL
        )


def mix_variant(
    text: str,
    domain: pa.Table,
    selected: pa.Table | None,
    writers: Mapping[str, Writer],
    *,
    total: int,
    fraction: float,
    seed: int,
    count_tokens: Callable[[Sequence[Message]], int],
    threads: int = 0,
    conversations: pa.Table | None = None,
) -> pa.Table:
    """Exactly `total` rows of `records.MIXED`; `selected` None means that the variant rehearses nothing.

    `writers` describes the committee's members, `count_tokens` measures one conversation; `conversations`
    (`records.CONVERSATIONS`) has what stands before an instruction. The pools must have passed `check_pools`.
    """
    learnt, rehearsed = needs(total, fraction, selected is not None)
    tables = {
        "domain": domain,
        "conversations": conversations if conversations is not None else CONVERSATIONS.empty_table(),
        "selected": selected if selected is not None else _NOTHING_SELECTED,
        "writers": pa.Table.from_pylist([{"member": name, **asdict(one)} for name, one in writers.items()], _WRITERS),
    }
    parameters = {"seed": seed, "domain_rows": learnt, "rehearsal_rows": rehearsed}
    table = sql.run(text, tables, parameters, threads)
    tokens = [count_tokens(messages) for messages in table["messages"].to_pylist()]
    return table.append_column("tokens", pa.array(tokens, pa.int64())).select(MIXED.names).cast(MIXED)


def counts(mixed: pa.Table) -> dict[str, int | float]:
    """Rows and tokens by source, and the domain's share of each, rounded to six digits."""
    is_domain = pc.equal(mixed["source"], "domain")
    rows = {"domain": mixed.filter(is_domain), "rehearsal": mixed.filter(pc.invert(is_domain))}
    tokens = {name: pc.sum(part["tokens"]).as_py() or 0 for name, part in rows.items()}
    return {
        **{f"rows.{name}": part.num_rows for name, part in rows.items()},
        **{f"tokens.{name}": count for name, count in tokens.items()},
        "domain_share.rows": round(rows["domain"].num_rows / mixed.num_rows, 6),
        "domain_share.tokens": round(tokens["domain"] / max(1, sum(tokens.values())), 6),
    }


_WRITERS = pa.schema([("member", pa.string()), ("licence", pa.string()), ("system", pa.string())])
_NOTHING_SELECTED = pa.schema(
    [(name, pa.string()) for name in ("instruction_id", "instruction", "response_id", "member", "response", "status")]
).empty_table()
