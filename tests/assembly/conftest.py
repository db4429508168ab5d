"""Commands run in this process and in forked children."""

from commands import cli, forked, warm

__all__ = ["cli", "forked", "warm"]
