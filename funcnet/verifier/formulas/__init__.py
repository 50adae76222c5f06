"""Formulas as text: read without being evaluated as Python, derived by the rules of matrix calculus."""
