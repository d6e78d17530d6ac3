"""Fine-tune hybrids of tvc from one recipe, on one core or many machines."""
