"""What all tests use: the fixtures that tvc ships for tests of plugins."""

import gc

pytest_plugins = ["tvc_core.testing.fixtures"]


def pytest_collection_finish() -> None:
    """Leave out of garbage collection what lives as long as the session."""
    # Torch and thousands of tests are 700,000 objects, which every full collection looks through
    # again: a third of a second each time, in tests that are otherwise over as soon.
    gc.collect()
    gc.freeze()
