"""distilabel's pipeline of one step: a batch is over when its last answer is there.

Run by bench.client: python distilabel.py <base URL> <questions as JSON> <batch size>
"""

import json
import sys
import time
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

if __name__ == "__main__":
    base_url, path, size = sys.argv[1:]
    questions = json.loads(Path(path).read_text(encoding="utf-8"))
    batch_size = int(size)
    with Pipeline(name="bench") as pipeline:
        load = LoadDataFromDicts(data=[{"instruction": question} for question in questions], batch_size=batch_size)
        settings = {"max_new_tokens": 256, "temperature": 1.0, "top_p": 0.9}
        llm = OpenAILLM(model="fake", base_url=base_url, api_key="none", generation_kwargs=settings, timeout=600)
        load >> TextGeneration(llm=llm, input_batch_size=batch_size)
    start = time.monotonic()
    rows = pipeline.run(use_cache=False)["default"]["train"]
    seconds = time.monotonic() - start
    answered = sum(generation is not None for generation in rows["generation"])
    print(json.dumps({"answered": answered, "seconds": seconds}))
