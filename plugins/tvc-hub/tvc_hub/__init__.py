"""Share hybrids of tvc through the Hugging Face Hub."""
