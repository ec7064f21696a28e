"""Measured claims: each benchmark compares the product with a baseline in the same run."""
