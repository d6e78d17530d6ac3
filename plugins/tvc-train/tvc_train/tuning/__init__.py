"""Search for the values of a recipe that train best. Importing it imports nothing else."""
