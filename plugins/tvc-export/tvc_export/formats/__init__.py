"""The formats that tvc-export itself offers, a module each."""
