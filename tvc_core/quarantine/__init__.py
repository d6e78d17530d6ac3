"""Runs the code of plugins so that a faulty one costs nobody but itself. Imports no torch."""
