"""Other logits from the embeddings that a cache stores: other prompts, or a linear probe. No image is touched."""
