"""The command `tvc`: list, show and build what plugins of tvc offer. Importing this package imports
nothing else.
"""
