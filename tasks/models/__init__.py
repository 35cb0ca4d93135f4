"""Models as Hugging Face keeps them: the hub, folders, tokenizers, weights, whose code may run, what they write."""
