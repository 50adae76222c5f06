"""The operations, one file each: definition, fast form, gradient, matrix and cost (docs/contract.md)."""
