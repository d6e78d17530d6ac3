"""Change a network: locate, measure, prepare, insert."""
