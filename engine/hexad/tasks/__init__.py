"""One module per model: how it is built, trained, sampled, scored and judged."""
