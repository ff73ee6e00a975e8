"""bespokelabs-curator with its limits raised as far as it needs: it holds back 200 requests a minute otherwise.

Run by bench.client: python curator.py <base URL> <questions as JSON> <concurrency, 0 for its own choice>
"""

import json
import sys
import time
from pathlib import Path

from bespokelabs import curator

UNLIMITED = 10**9

if __name__ == "__main__":
    base_url, path, concurrency = sys.argv[1:]
    questions = json.loads(Path(path).read_text(encoding="utf-8"))
    settings: dict[str, str | int] = {
        "base_url": base_url,
        "max_requests_per_minute": UNLIMITED,
        "max_tokens_per_minute": UNLIMITED,
    }
    if int(concurrency):
        settings["max_concurrent_requests"] = int(concurrency)
    asker = curator.LLM(
        model_name="fake",
        backend="openai",
        backend_params=settings,
        generation_params={"max_tokens": 256, "temperature": 1.0, "top_p": 0.9},
    )
    start = time.monotonic()
    answers = asker(questions)
    seconds = time.monotonic() - start
    print(json.dumps({"answered": len(answers.dataset), "seconds": seconds}))
