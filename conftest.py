"""What all tests use: the fixtures that tvc ships for tests of plugins."""

pytest_plugins = ["tvc_core.testing.fixtures"]
