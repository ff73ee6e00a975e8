"""A chat server that only waits: so many slots, and service times that depend on the question alone.

Run: python fake_server.py <slots>     (standard library only; prints its port and serves until its stdin ends)
A request beyond the slots stands in a queue. The service time is log-normal with mean 0.5 s and sigma 0.8, drawn from
the last message, so that every client meets the same times. `GET /figures` tells what happened since the last such
request. Only messages that begin with MARK count and wait: a client's own probes are answered at once.
"""

import asyncio
import json
import math
import random
import re
import sys
import time
from collections import deque

MARK = "Question "
MEAN_S, SIGMA = 0.5, 0.8
TEXT = "A heron waits for a small fish to swim within reach of its neck, and then it strikes without a sound. " * 6
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def service_s(question: str) -> float:
    """Seconds that a question takes."""
    return random.Random(question).lognormvariate(math.log(MEAN_S) - SIGMA**2 / 2, SIGMA)


class Desk:
    """The slots and the queue before them."""

    def __init__(self, slots: int):
        self.slots, self.busy = slots, 0
        self.queue: deque[tuple[Connection, str]] = deque()
        self.reset()

    def reset(self) -> None:
        self.answered = self.in_flight = self.most_in_flight = 0
        self.service_s = 0.0
        self.first = self.last = math.nan

    def figures(self) -> dict[str, float]:
        """What happened; `seconds` from the first request to the last answer, `most_in_flight` with the queue."""
        return {
            "answered": self.answered,
            "most_in_flight": self.most_in_flight,
            "seconds": self.last - self.first,
            "service_s": self.service_s,
        }

    def arrive(self, connection: "Connection", question: str) -> None:
        if not self.most_in_flight:
            self.first = time.monotonic()
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.queue.append((connection, question))
        self.fill()

    def fill(self) -> None:
        while self.busy < self.slots and self.queue:
            connection, question = self.queue.popleft()
            self.busy += 1
            seconds = service_s(question)
            asyncio.get_running_loop().call_later(seconds, self.leave, connection, seconds)

    def leave(self, connection: "Connection", seconds: float) -> None:
        self.busy -= 1
        self.in_flight -= 1
        self.answered += 1
        self.service_s += seconds
        connection.reply(completion())
        self.last = time.monotonic()
        self.fill()


class Connection(asyncio.Protocol):
    """HTTP/1.1 with kept connections and bodies of a known length: what these clients send."""

    def __init__(self, desk: Desk):
        self.desk, self.buffer = desk, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\r\n\r\n")
            length = LENGTH.search(head)
            size = int(length[1]) if length else 0
            if len(rest) < size:
                return
            self.buffer = rest[size:]
            self.answer(head.split(b" ", 2)[1], rest[:size])

    def answer(self, path: bytes, body: bytes) -> None:
        if path == b"/figures":
            self.reply(json.dumps(self.desk.figures()).encode())
            self.desk.reset()
            return
        messages = json.loads(body)["messages"]
        question = messages[-1]["content"] if messages else ""  # curator's probe has none
        if not isinstance(question, str):  # a list of parts, of which the first one is the text
            question = question[0]["text"]
        if question.startswith(MARK):
            self.desk.arrive(self, question)
        else:
            self.reply(completion())

    def reply(self, body: bytes) -> None:
        if not self.transport.is_closing():
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(head + body)


def completion() -> bytes:
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 40, "completion_tokens": 130, "total_tokens": 170}
    reply = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "fake", "choices": [choice]}
    return json.dumps(reply | {"usage": usage}).encode()


async def serve(slots: int) -> None:
    loop = asyncio.get_running_loop()
    desk = Desk(slots)
    server = await loop.create_server(lambda: Connection(desk), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
