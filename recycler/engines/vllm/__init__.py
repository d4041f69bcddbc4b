"""The vLLM engine: a live model whose weights are replaced in place."""
