"""Causal self-attention from the first sketch to the fast form; needs torch and nothing else."""
