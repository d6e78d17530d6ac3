"""The report of a run: one HTML file with its pictures inside. Importing this package imports
nothing else.
"""
