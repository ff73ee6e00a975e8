"""The models that a conversation's turns are asked of, one server at a time."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anamnesis.chat import tokenizer_of
from anamnesis.client import BUDGET_FLOOR, Client
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.wire import Call, Outcome

TRIED = re.compile(r"after \d+ tries")  # in a failed row's reason: asking again may help


class TurnClient(Client):
    """A client for which few calls that are refused for good end their conversations, not the stage."""

    def ask(self, calls: Sequence[Call], label: str, essential: bool = True) -> list[Outcome]:
        few = len(calls) < BUDGET_FLOOR
        outcomes = super().ask(calls, f"converse: {label}", essential and not few)
        passing = [outcome.reason for outcome in outcomes if TRIED.search(outcome.reason or "")]
        if essential and few and passing and not any(outcome.answer for outcome in outcomes):
            raise UserError(
                f"model {self.card.name}: none of {len(calls)} requests was answered; the last: {passing[-1]}; "
                "answered calls are kept: rerun",
                MODEL_UNAVAILABLE,
            )
        return outcomes


class Models:
    """The models by name. One server runs at a time: it ends when another model is asked for."""

    def __init__(self, params: Params, ledger: Ledger):
        self._params, self._ledger = params, ledger
        self._open = ExitStack()
        self._client: Client | None = None

    def client(self, name: str) -> Client:
        if self._client is None or self._client.card.name != name:
            self.close()
            self._client = TurnClient(Path("models/pretrained") / name, self._params, self._ledger)
            self._open.enter_context(self._client)
        return self._client

    def tokenizer(self) -> Any:
        """The target's."""
        target = self._params.target
        return tokenizer_of(Path("models/pretrained") / target, self._params.models[target].trust_remote_code)

    def close(self) -> None:
        self._open.close()
