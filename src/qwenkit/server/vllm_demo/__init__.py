"""The protocol of vLLM's first server."""
