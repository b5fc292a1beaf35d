"""The tasks: prompts, jobs, inpainting, reranking, streaming, normalisation of prompts."""
