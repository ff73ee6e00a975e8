"""The least that a program does to ask: workers around one AsyncOpenAI client; nothing is kept, nothing is retried.

Run by bench.client: python raw.py <base URL> <questions as JSON> <workers>
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import openai


async def ask(base_url: str, questions: list[str], workers: int) -> int:
    """How many questions were answered."""
    answered = 0
    queue = iter(enumerate(questions))

    async def work(client: openai.AsyncOpenAI) -> None:
        nonlocal answered
        for seed, question in queue:
            reply = await client.chat.completions.create(
                model="fake",
                messages=[{"role": "user", "content": question}],
                max_tokens=256,
                temperature=1.0,
                top_p=0.9,
                seed=seed,
            )
            answered += bool(reply.choices[0].message.content)

    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        await asyncio.gather(*(work(client) for _ in range(workers)))
    return answered


if __name__ == "__main__":
    base_url, path, workers = sys.argv[1:]
    questions = json.loads(Path(path).read_text(encoding="utf-8"))
    start = time.monotonic()
    answered = asyncio.run(ask(base_url, questions, int(workers)))
    print(json.dumps({"answered": answered, "seconds": time.monotonic() - start}))
