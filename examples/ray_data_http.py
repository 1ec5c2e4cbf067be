"""Ask a running `mllama serve` from Ray Data, with the processor that ray.data.llm has for any OpenAI server.

mllama serve --model 11b --port 8080 &
python examples/ray_data_http.py http://localhost:8080 11b photos/ captions/
"""

import base64
import sys
from typing import Any

import ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor


def answer(row: dict[str, Any]) -> dict[str, Any]:
    reply = row["http_response"]
    if error := reply.get("error"):
        return {"path": row["path"], "caption": None, "error": error["message"]}
    return {"path": row["path"], "caption": reply["choices"][0]["message"]["content"], "error": None}


def main(server: str, model: str, pictures: str, captions: str) -> None:
    def question(row: dict[str, Any]) -> dict[str, Any]:
        image = base64.b64encode(row["bytes"]).decode()
        parts = [
            {"type": "text", "text": "Describe this image in one sentence."},
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
        ]
        return {"payload": {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 64}}

    url = f"{server}/v1/chat/completions"
    config = HttpRequestProcessorConfig(url=url, batch_size=16, concurrency=1, max_retries=5)
    processor = build_processor(config, preprocess=question, postprocess=answer)
    processor(ray.data.read_binary_files(pictures, include_paths=True)).write_parquet(captions)


if __name__ == "__main__":
    main(*sys.argv[1:])
