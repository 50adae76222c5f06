"""Products with matrices: linear, matmul, embedding."""
