"""Ways of generating: each function here reads as its algorithm, and the arithmetic is in hexad_kernels."""
