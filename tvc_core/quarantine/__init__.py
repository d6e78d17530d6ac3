"""Runs the code of plugins so that a faulty one harms only itself. Imports no torch."""
