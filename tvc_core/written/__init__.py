"""What users write, whatever it describes: how it is read, and what a value may be."""
