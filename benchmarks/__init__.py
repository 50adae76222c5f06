"""funcnet's benchmarks: `python -m benchmarks NAME`; a module with a function `run(quick)` is a benchmark."""
