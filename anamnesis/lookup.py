"""The ledger's answers to calls that nobody has to be asked again; a pilot asks the first few that it lacks.

In: params.yaml, models/pretrained, the ledger. Out: `Found`; clients that answer with what is known.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from anamnesis import sources
from anamnesis.cards import Card, load_card
from anamnesis.client import Client
from anamnesis.conversing import UNASKED
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.planning import Found, found_in_all
from anamnesis.server import identity_of
from anamnesis.turns import Models
from anamnesis.wire import Call, Outcome

STALE = "models.{}: changed since stage models made it; run `dvc repro models`"


class Lookup:
    """Looks calls up as the run would make them. `pilot`: calls to ask of each label."""

    def __init__(self, params: Params, ledger: Ledger, pilot: int):
        self._params, self._ledger, self._pilot = params, ledger, pilot
        self._piloted: Counter[str] = Counter()  # calls asked, by label: stage and model

    def card(self, name: str) -> Card:
        """A model's card as params.yaml has it: a server's needs no stage models, weights need theirs."""
        model = self._params.models[name]
        if model.base_urls:
            return sources.card_of(name, model, None, None)
        card = load_card(Path("models/pretrained") / name)
        if card.uri != model.uri:
            raise UserError(STALE.format(name), MODEL_UNAVAILABLE)
        return card

    def look(self, model: str, calls: Sequence[Call], label: str) -> Found:
        """The ledger's answer to each call; a pilot asks the first few that it lacks."""
        directory = Path("models/pretrained") / model
        card = self.card(model)
        identity = identity_of(card, self._params.serve)
        keys = [call.key(identity) for call in calls]
        known = self._ledger.known(keys)
        missing = [call for key, call in zip(keys, calls, strict=True) if key not in known]
        missing = missing[: self._pilot - self._piloted[label]]
        self._piloted[label] += len(missing)
        if missing and card.mode == "batch":
            raise UserError(f"--pilot: models.{model} answers in batches, within a day; plan without a pilot")
        if missing and load_card(directory).identity != card.identity:
            raise UserError(STALE.format(model), MODEL_UNAVAILABLE)
        if missing:
            with Client(directory, self._params, self._ledger) as client:
                client.ask(missing, f"pilot: {label}")
        found = self._ledger.timed(keys)
        answers = [found[key][0] if key in found else None for key in keys]
        return Found(calls, keys, answers, {key: latency for key, (_, latency) in found.items()})


class KnownClient(Client):
    """A client that asks nobody."""

    def __init__(self, card: Card, ask: Callable[[str, Sequence[Call], str], list[Outcome]]):
        self.card, self._answers = card, ask

    def ask(self, calls: Sequence[Call], label: str, essential: bool = True) -> list[Outcome]:
        return self._answers(self.card.name, calls, label)


class KnownModels(Models):
    """The models of stage converse as the ledger knows them: what it lacks is counted, and answered UNASKED."""

    def __init__(self, params: Params, ledger: Ledger, lookup: Lookup):
        super().__init__(params, ledger)
        self._lookup = lookup
        self._found: dict[tuple[str, str], list[Found]] = {}

    def client(self, name: str) -> Client:
        return KnownClient(self._lookup.card(name), self._ask)

    def _ask(self, name: str, calls: Sequence[Call], label: str) -> list[Outcome]:
        kind = label.split(maxsplit=1)[0]
        found = self._lookup.look(name, calls, f"converse: {kind} {name}")
        self._found.setdefault((kind, name), []).append(found)
        return [Outcome(answer, None if answer else UNASKED) for answer in found.answers]

    def found(self, kind: str, name: str) -> Found:
        """All calls of a kind (respond, judge, turns) to a model."""
        return found_in_all(self._found.get((kind, name), []))
