"""Loads what the tests of the example plugins share with all others."""

pytest_plugins = ["for_all_tests"]
