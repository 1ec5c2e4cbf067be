"""Ask a running `mllama serve` from Ray Data, with the processor that ray.data.llm has for any OpenAI server.

mllama serve --port 8080 &
python examples/ray_data_http.py http://localhost:8080 photos/ captions/
"""

import base64
import sys
from typing import Any

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor


def question(row: dict[str, Any]) -> dict[str, Any]:
    image = base64.b64encode(row["bytes"]).decode()
    parts = [
        {"type": "text", "text": "Describe this image in one sentence."},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
    ]
    return {"payload": {"model": "mllama", "messages": [{"role": "user", "content": parts}], "max_tokens": 64}}


def answer(row: dict[str, Any]) -> dict[str, Any]:
    return {"path": row["path"], "caption": row["http_response"]["choices"][0]["message"]["content"]}


def main(server: str, pictures: str, captions: str) -> None:
    config = HttpRequestProcessorConfig(url=f"{server}/v1/chat/completions", batch_size=16, concurrency=1)
    processor = build_processor(config, preprocess=question, postprocess=answer)
    processor(ray.data.read_binary_files(pictures, include_paths=True)).write_parquet(captions)


if __name__ == "__main__":
    main(*sys.argv[1:])
