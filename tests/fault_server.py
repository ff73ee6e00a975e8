"""An OpenAI-compatible server that answers from the request's content, counts, and misbehaves where told to.

For failure tests only. An answer is a function of the request, so two runs can be compared to the byte; a fault is a
function of the request, the seed and the number of the try, so a run can be repeated. Beside chat and text completions
it has the Batch API: files, batches and their results.
"""

import email.utils
import hashlib
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

WORDS = "plain river stone under quiet morning light walks toward seven green doors while nobody counts them".split()
PROMPT_TOKENS, COMPLETION_TOKENS = 10, 12  # the usage that is told, for a request and for each of its samples

# What a try can meet. `hang` never answers, `late` answers (and counts as served) when the client has given up.
PASSING = (
    "429", "429 for seconds", "429 until a date", "500", "502", "hang", "late", "reset", "truncated", "null content",
    "no choices", "wrong number",
)  # fmt: skip

CHARGED = ("late", "reset", "truncated", "null content", "no choices", "wrong number")

Bad = tuple[int, dict[str, str], bytes]  # status (0: hang up), headers, body


class Arrival(NamedTuple):
    """A request that came: `at` is time.time(), `in_flight` counts it."""

    at: float
    key: str
    samples: int
    in_flight: int


@dataclass
class BatchPlan:
    """How batches go: over at the `polls`-th look, `ends` as completed, expired or failed, a fate for each line."""

    polls: int = 1
    ends: str = "completed"
    fate: Callable[[dict[str, Any]], str] = lambda body: "ok"  # or error, or missing
    room: int = 1000  # batches in progress at once; one more fails
    lost_creates: int = 0  # how many replies to create are lost, the batch being there
    page: int = 100  # batches a page of the list, at most
    created: list[dict[str, Any]] = field(default_factory=list)
    looks: Counter[str] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class FaultServer:
    """`fault(body, tries)` may return (status, headers, raw body) to misbehave, or None to answer.

    `faults` are shares of tries by kind (`PASSING`), drawn by `seed`; a request meets no more than `most_faults` of
    them. `refused` and `cut` are shares of requests that always get a 400 or end with finish_reason length.
    """

    delay_s: float = 0.0
    fault: Callable[[dict[str, Any], int], Bad | None] = lambda body, tries: None
    seed: int = 0
    faults: Mapping[str, float] = field(default_factory=dict)
    most_faults: int = 3
    refused: float = 0.0
    cut: float = 0.0
    ignores_n: bool = False  # one choice, whatever `n` is
    slow_start: int = 0  # requests that get a 503 first
    dies_after: int | None = None  # served requests
    back_after_s: float | None = None
    retry_after_s: float = 0.05
    batch: BatchPlan = field(default_factory=BatchPlan)
    base_url: str = ""
    served: Counter[str] = field(default_factory=Counter)  # answered requests by content
    tried: Counter[str] = field(default_factory=Counter)
    faulted: Counter[str] = field(default_factory=Counter)  # faults by kind
    unheard: Counter[str] = field(default_factory=Counter)  # of `served`, those whose client had given up, by content
    tokens: int = 0  # charged: of what was served and of faults that a model had to answer for
    arrivals: list[Arrival] = field(default_factory=list)
    asking: "set[_Handler]" = field(default_factory=set)  # a request is in flight until its reply is written
    most_in_flight: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0
    connections: set[socket.socket] = field(default_factory=set)
    httpd: "_Server | None" = None

    @property
    def in_flight(self) -> int:
        """Requests whose client still waits for a reply."""
        return sum(not one.gone() for one in self.asking.copy())

    def drawn(self, key: str, tries: int) -> str:
        """The kind of fault that a try meets; empty for none."""
        at = random.Random(f"{self.seed} {key} {tries}").random()
        for kind, share in self.faults.items():
            if at < share and tries <= self.most_faults:
                return kind
            at -= share
        return ""

    def always(self, what: str, key: str, share: float) -> bool:
        """Whether a request is one of the `share` to which `what` always happens."""
        return random.Random(f"{self.seed} {what} {key}").random() < share

    def start(self) -> None:
        """Listen: on a free port at first, on the same one again."""
        self.httpd = _Server(("127.0.0.1", self.port), _Handler)
        self.httpd.told, self.port = self, self.httpd.server_port
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Die: refuse connections and break those that are open."""
        httpd, self.httpd = self.httpd, None
        if httpd:
            httpd.shutdown()
            httpd.server_close()
            with self.lock:
                still_open = list(self.connections)
            for connection in still_open:
                _reset(connection)

    def settle(self) -> None:
        """Wait until nobody is connected and nothing is being answered."""
        calm = 0
        while calm < 3:
            time.sleep(0.005)
            calm = 0 if self.connections or self.asking else calm + 1

    def _die(self) -> None:
        self.stop()
        if self.back_after_s is not None:
            time.sleep(self.back_after_s)
            self.start()


def key_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def text_for(key: str) -> str:
    """Some words that depend on the request."""
    return " ".join(WORDS[int(digit, 16) % len(WORDS)] for digit in key[:12]) + "."


def reply_to(body: dict[str, Any], path: str) -> dict[str, Any]:
    """A reply in OpenAI's form, for chat and for completions; sample i depends on the request and i, not on `n`."""
    count = body.get("n") or 1
    alone = {name: value for name, value in body.items() if name != "n"}
    keys = [key_of(alone)] + [key_of(alone | {"sample": i}) for i in range(1, count)]
    completion = COMPLETION_TOKENS * count
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": completion,
        "total_tokens": PROMPT_TOKENS + completion,
    }
    head = {"id": keys[0][:12], "created": 0, "model": body["model"], "usage": usage}
    if not path.endswith("/chat/completions"):
        texts = [{"text": text_for(key), "finish_reason": "stop", "logprobs": None} for key in keys]
        return head | {"object": "text_completion", "choices": [{"index": i, **text} for i, text in enumerate(texts)]}
    choices = [{"index": i, "finish_reason": "stop", **_chat(body, key)} for i, key in enumerate(keys)]
    return head | {"object": "chat.completion", "choices": choices}


def _chat(body: dict[str, Any], key: str) -> dict[str, Any]:
    """Message and logprobs of one choice: a score where the prompt asks for one, else some words."""
    digit = str(1 + int(key[0], 16) % 5)
    text, logprobs = text_for(key), None
    if "Score: <rating>" in body["messages"][-1]["content"]:
        text = f"Score: {digit}" if body.get("logprobs") else f"It is so.\nScore: {digit}"
    if body.get("logprobs"):
        top = [{"token": digit, "logprob": -0.2, "bytes": None}, {"token": "3", "logprob": -2.0, "bytes": None}]
        tokens = [{"token": token, "logprob": -0.2, "bytes": None, "top_logprobs": top} for token in ("Score: ", digit)]
        logprobs = {"content": tokens, "refusal": None}
    return {"message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": logprobs}


def error_body(message: str, code: str | None = None, kind: str = "invalid_request_error") -> bytes:
    """An error in OpenAI's form."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def _reset(connection: socket.socket) -> None:
    """Break a connection with a TCP reset."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


class _Server(ThreadingHTTPServer):
    told: FaultServer
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client may go away at any time
            super().handle_error(*_)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        with self.server.told.lock:
            self.server.told.connections.add(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.server.told.lock:
                self.server.told.connections.discard(self.connection)

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        raw = self.rfile.read(length)
        if len(raw) < length:  # the client died while it wrote
            self.close_connection = True
            return
        match urlsplit(self.path).path:
            case "/v1/files":
                self._file(raw)
            case "/v1/batches":
                self._batch(json.loads(raw))
            case path:
                self._answer(json.loads(raw), path)

    def do_GET(self) -> None:
        told, url = self.server.told, urlsplit(self.path)
        plan, parts = told.batch, url.path.split("/")[2:]
        with told.lock:
            match parts:
                case ["batches"]:
                    reply = _listed(plan, parse_qs(url.query))
                case ["batches", name]:
                    batch = next(one for one in plan.created if one["id"] == name)
                    plan.looks[name] += 1
                    if plan.looks[name] == plan.polls and batch["status"] == "in_progress":
                        _end(told, batch)
                    reply = json.dumps(batch).encode()
                case ["files", name, "content"]:
                    reply = plan.files[name]
                case _:
                    self._send(404, {}, error_body("no such path"))
                    return
        self._send(200, {}, reply)

    def _file(self, raw: bytes) -> None:
        boundary = re.search(r"boundary=([^;]+)", self.headers["content-type"])
        assert boundary
        parts = [part.partition(b"\r\n\r\n") for part in raw.split(b"--" + boundary[1].encode())]
        content = next(body.removesuffix(b"\r\n") for head, _, body in parts if b"filename=" in head)
        plan = self.server.told.batch
        with self.server.told.lock:
            name = f"file-{len(plan.files)}"
            plan.files[name] = content
        file = {"id": name, "object": "file", "bytes": len(content), "created_at": int(time.time()), "filename": "x"}
        self._send(200, {}, json.dumps(file | {"purpose": "batch", "status": "processed"}).encode())

    def _batch(self, body: dict[str, Any]) -> None:
        told = self.server.told
        with told.lock:
            told.headers.append({name.lower(): value for name, value in self.headers.items()})
            batch = body | {
                "id": f"batch-{len(told.batch.created)}", "object": "batch", "created_at": int(time.time()),
                "status": "in_progress", "errors": None, "output_file_id": None, "error_file_id": None,
            }  # fmt: skip
            if sum(one["status"] == "in_progress" for one in told.batch.created) >= told.batch.room:
                full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached.", "line": None}
                batch |= {"status": "failed", "errors": {"object": "list", "data": [full | {"param": None}]}}
            told.batch.created.append(batch)
            lost = len(told.batch.created) <= told.batch.lost_creates
        if lost:
            self._hang_up()
        else:
            self._send(200, {}, json.dumps(batch).encode())

    def _answer(self, body: dict[str, Any], path: str) -> None:
        """Answer a request or misbehave, and count."""
        told, key = self.server.told, key_of(body)
        with told.lock:
            told.asking.add(self)
            in_flight = told.in_flight
            told.most_in_flight = max(told.most_in_flight, in_flight)
            told.tried[key] += 1
            tries = told.tried[key]
            told.headers.append({name.lower(): value for name, value in self.headers.items()})
            told.arrivals.append(Arrival(time.time(), key, body.get("n") or 1, in_flight))
            slow = len(told.arrivals) <= told.slow_start
        try:
            time.sleep(told.delay_s)
            bad = (503, {}, error_body("starting")) if slow else told.fault(body, tries)
            kind = "" if bad else told.drawn(key, tries)
            reply = reply_to(body | {"n": 1} if told.ignores_n and "n" in body else body, path)
            if told.always("cut", key, told.cut):
                reply["choices"] = [choice | {"finish_reason": "length"} for choice in reply["choices"]]
            if told.always("refused", key, told.refused):
                bad, kind = (400, {}, error_body("not with me")), ""
            if kind in ("hang", "late"):
                self._await_hang_up()
            if kind and kind != "late":
                bad = _bad(kind, reply, told.retry_after_s)
            charged = not bad or kind in CHARGED
            with told.lock:
                told.asking.discard(self)
                told.tokens += charged * reply["usage"]["total_tokens"]
                if bad:
                    told.faulted[kind or f"HTTP {bad[0]}"] += 1
                else:
                    told.faulted[kind] += bool(kind)
                    told.served[key] += 1
                    told.unheard[key] += self.gone()
                    dies = sum(told.served.values()) == told.dies_after
            if not bad:
                self._send(200, {}, json.dumps(reply).encode())
                if dies:
                    threading.Thread(target=told._die, daemon=True).start()
            elif bad[0]:
                self._send(*bad)
            else:
                self.wfile.write(bad[2])
                self._hang_up()
        finally:
            with told.lock:
                told.asking.discard(self)

    def _send(self, status: int, headers: dict[str, str], raw: bytes) -> None:
        self.wfile.write(_head(status, {"content-type": "application/json", **headers}, len(raw)) + raw)

    def _hang_up(self) -> None:
        self.close_connection = True
        _reset(self.connection)

    def gone(self) -> bool:
        """Whether the client has closed the connection."""
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _await_hang_up(self, limit_s: float = 60.0) -> None:
        end = time.monotonic() + limit_s
        while not self.gone() and time.monotonic() < end:
            time.sleep(0.01)


def _head(status: int, headers: dict[str, str], length: int) -> bytes:
    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def _bad(kind: str, reply: dict[str, Any], retry_after_s: float) -> Bad:
    """What a fault of this kind sends in place of a reply; status 0: these bytes, then the connection breaks."""
    whole = json.dumps(reply).encode()
    first = reply["choices"][0]
    empty = {"text": None} if "text" in first else {"message": {"role": "assistant", "content": None}}
    empty["finish_reason"] = "stop"  # at `length` a reply without content is an answer
    match kind:
        case "429 for seconds":
            return 429, {"retry-after": str(retry_after_s)}, error_body("slow down")
        case "429 until a date":
            date = email.utils.formatdate(time.time() + retry_after_s, usegmt=True)
            return 429, {"retry-after": date}, error_body("slow down")
        case "429" | "500" | "502":
            return int(kind), {}, b"oops"
        case "hang":
            return 0, {}, b""
        case "reset":
            return 0, {}, _head(200, {"content-type": "application/json"}, len(whole)) + whole[: len(whole) // 2]
        case "truncated":
            return 200, {}, whole[:-20]
        case "null content":
            return 200, {}, json.dumps(reply | {"choices": [one | empty for one in reply["choices"]]}).encode()
        case "no choices":
            return 200, {}, json.dumps(reply | {"choices": []}).encode()
        case "wrong number":
            return 200, {}, json.dumps(reply | {"choices": [*reply["choices"], first]}).encode()
    raise ValueError(f"no fault {kind!r}")


def _listed(plan: BatchPlan, query: dict[str, list[str]]) -> bytes:
    """A page of batches, newest first."""
    newest = plan.created[::-1]
    after = query.get("after", [None])[0]
    start = 1 + next(i for i, one in enumerate(newest) if one["id"] == after) if after else 0
    page = newest[start : start + min(plan.page, int(query.get("limit", ["20"])[0]))]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return json.dumps({"object": "list", "data": page, **ends, "has_more": start + len(page) < len(newest)}).encode()


def _end(told: FaultServer, batch: dict[str, Any]) -> None:
    """Let a batch be over: write its result files and count what it served."""
    plan = told.batch
    batch["status"] = plan.ends
    if plan.ends == "failed":
        wrong = {"code": "model_not_found", "message": "The provided model has no batches.", "line": 1, "param": None}
        batch["errors"] = {"object": "list", "data": [wrong]}
        return
    results: dict[str, list[dict[str, Any]]] = {"output": [], "error": []}
    for line in map(json.loads, plan.files[batch["input_file_id"]].splitlines()):
        entry: dict[str, Any] = {"id": "x", "custom_id": line["custom_id"], "response": None, "error": None}
        fate = plan.fate(line["body"])
        if fate == "ok":
            reply = reply_to(line["body"], line["url"])
            results["output"].append(entry | {"response": {"status_code": 200, "request_id": "x", "body": reply}})
            told.served[key_of(line["body"])] += 1
            told.tokens += reply["usage"]["total_tokens"]
        elif fate == "error":
            body = json.loads(error_body("not with me"))
            results["error"].append(entry | {"response": {"status_code": 400, "request_id": "x", "body": body}})
        elif plan.ends == "expired":
            late = {"code": "batch_expired", "message": "This request could not be executed in time."}
            results["error"].append(entry | {"error": late})
    for what, entries in results.items():
        if entries:
            batch[f"{what}_file_id"] = f"{what}-of-{batch['id']}"
            plan.files[f"{what}-of-{batch['id']}"] = b"".join(json.dumps(one).encode() + b"\n" for one in entries)


@contextmanager
def fault_server(server: FaultServer) -> Iterator[FaultServer]:
    """Run the server on a free loopback port and fill in `base_url`."""
    server.start()
    try:
        yield server
    finally:
        server.dies_after = None
        server.stop()
