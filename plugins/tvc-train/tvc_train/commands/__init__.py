"""The commands that this plugin adds to `tvc`, a file each. Each collects its facts first, then
prints them.
"""
