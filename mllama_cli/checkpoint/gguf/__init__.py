"""GGUF files of Llama 3.2 Vision, as ollama keeps them: their header, number formats, and names of weights."""
