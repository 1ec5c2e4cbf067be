"""Ask a running `mllama serve` about many images at once, with OpenAI's client (pip install openai):

python examples/server_batch.py "What is in this picture?" photos/*.jpg
"""

import asyncio
import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import AsyncOpenAI


async def ask(client: AsyncOpenAI, model: str, question: str, image: Path) -> str:
    """Return the answer about one image."""
    kind = mimetypes.guess_type(image.name)[0] or "image/jpeg"
    url = f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}])
    return answer.choices[0].message.content


async def ask_all(question: str, images: list[Path]) -> list[str]:
    """Return the answers in the order of the images. The server answers as many at once as it has slots."""
    url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:11434/v1")
    async with AsyncOpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none")) as client:
        model = (await client.models.list()).data[0].id
        return await asyncio.gather(*(ask(client, model, question, image) for image in images))


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[2:]]
    for file, text in zip(files, asyncio.run(ask_all(sys.argv[1], files)), strict=True):
        print(f"{file}: {text}")
