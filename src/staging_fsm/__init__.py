"""A deterministic staging runner for LLM orchestrators."""
