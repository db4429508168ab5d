"""Commands run in this process."""

from commands import cli

__all__ = ["cli"]
