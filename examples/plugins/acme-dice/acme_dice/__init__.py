"""The loss `dice` for tvc and acme-losses."""

__version__ = "0.1.0"
