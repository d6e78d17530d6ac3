"""Loads what the tests of the first-party plugins share with all others."""

pytest_plugins = ["for_all_tests"]
