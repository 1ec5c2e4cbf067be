"""PEFT's LoRA adapters: what they say, and their weights merged into a model's while those are read."""
