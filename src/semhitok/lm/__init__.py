"""The multimodal model: a language model that reads and writes the tokenizer's ids."""
