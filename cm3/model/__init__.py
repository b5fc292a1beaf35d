"""The transformer, its KV cache and configuration, and the scorer that reranks."""
