"""Read a receipt into JSON that fits a schema:  python examples/receipt.py receipt.jpg [model]"""

import json
import sys

from mllama_cli import Conversation, Grammar, Sampling, load, read_image

TEXT = {"type": "string", "maxLength": 40}
CENTS = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
ITEM = {"type": "object", "properties": {"name": TEXT, "price": CENTS}, "required": ["name", "price"]}
RECEIPT = {
    "type": "object",
    "properties": {
        "shop": TEXT,
        "date": {"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"},
        "items": {"type": "array", "items": ITEM, "maxItems": 20},
        "total": CENTS,
    },
    "required": ["shop", "date", "items", "total"],
}
QUESTION = "Read this receipt: the shop, the date as YYYY-MM-DD, each item and the total in cents, as JSON."


def extract(image: str, model: str | None = None) -> dict:
    """Return the receipt. The grammar allows nothing else, so the answer needs no checks but for its content."""
    sampling = Sampling(temperature=0, max_tokens=2048, grammar=Grammar.schema(RECEIPT))
    (reply,) = load(model).answer_batch([Conversation.ask(QUESTION, (read_image(image),))], sampling)
    return json.loads(reply.text)


if __name__ == "__main__":
    receipt = extract(*sys.argv[1:])
    print(json.dumps(receipt, indent=2))
    if sum(item["price"] for item in receipt["items"]) != receipt["total"]:
        print("The prices do not add up to the total.", file=sys.stderr)
