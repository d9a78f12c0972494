"""Context parallelism on this machine, beside one process and beside the cost model."""
