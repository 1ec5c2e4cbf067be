"""Meta's own files of Llama 3.2 Vision: consolidated.pth, whole or cut into shards, params.json and tokenizer.model."""
