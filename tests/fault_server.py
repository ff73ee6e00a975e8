"""An OpenAI-compatible server that answers from the request's content, counts, and misbehaves where told to.

For failure tests only: what it returns is a function of the request, so two runs can be compared to the byte.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = "plain river stone under quiet morning light walks toward seven green doors while nobody counts them".split()


@dataclass
class FaultServer:
    """`fault(body, tries)` may return (status, headers, raw body) to misbehave, or None to answer."""

    delay_s: float = 0.0
    fault: Callable[[dict[str, Any], int], tuple[int, dict[str, str], bytes] | None] = lambda body, tries: None
    base_url: str = ""
    served: Counter[str] = field(default_factory=Counter)  # answered requests by content
    tried: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def key_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def text_for(key: str) -> str:
    """Some words that depend on the request."""
    return " ".join(WORDS[int(digit, 16) % len(WORDS)] for digit in key[:12]) + "."


def reply_to(body: dict[str, Any], path: str) -> dict[str, Any]:
    """A reply in OpenAI's form, for chat and for completions."""
    key = key_of(body)
    usage = {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}
    head = {"id": key[:12], "created": 0, "model": body["model"], "usage": usage}
    if not path.endswith("/chat/completions"):
        choice = {"index": 0, "text": text_for(key), "finish_reason": "stop", "logprobs": None}
        return head | {"object": "text_completion", "choices": [choice]}
    digit = str(1 + int(key[0], 16) % 5)
    wants_score = "Score: <rating>" in body["messages"][-1]["content"]
    text = (digit if body.get("logprobs") else f"It is so.\nScore: {digit}") if wants_score else text_for(key)
    logprobs = None
    if body.get("logprobs"):
        top = [{"token": digit, "logprob": -0.2, "bytes": None}, {"token": "3", "logprob": -2.0, "bytes": None}]
        logprobs = {"content": [{"token": text, "logprob": -0.2, "bytes": None, "top_logprobs": top}], "refusal": None}
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    return head | {"object": "chat.completion", "choices": [choice]}


@contextmanager
def fault_server(server: FaultServer) -> Iterator[FaultServer]:
    """Run the server on a free loopback port and fill in `base_url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            key = key_of(body)
            with server.lock:
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
                server.tried[key] += 1
                tries = server.tried[key]
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
            try:
                time.sleep(server.delay_s)
                bad = server.fault(body, tries)
                if bad:
                    status, headers, raw = bad
                    if status == 0:  # reset in the middle of the body
                        self.connection.close()
                        return
                else:
                    status, headers, raw = 200, {}, json.dumps(reply_to(body, self.path)).encode()
                self.send_response(status)
                for name, value in {"content-type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
                self.wfile.flush()
                if not bad:
                    with server.lock:
                        server.served[key] += 1
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with server.lock:
                    server.in_flight -= 1

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server.base_url = f"http://127.0.0.1:{httpd.server_port}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
