"""Continuous batching over token ids: requests, sampling, guidance."""
