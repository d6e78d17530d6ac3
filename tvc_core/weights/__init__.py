"""Weight files: official ones, and loading what fits."""
