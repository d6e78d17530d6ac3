"""Export hybrids of tvc to other runtimes, with a proof of equal answers."""
