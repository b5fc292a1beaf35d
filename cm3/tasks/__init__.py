"""What is asked of the model: prompts, jobs, inpainting, reranking, streaming."""
