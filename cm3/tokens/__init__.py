"""Text and images as one sequence of ids: vocabulary, documents, masking, grammar."""
