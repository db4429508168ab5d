"""What a client did that we do not serve: a status, and one line without paths of this machine."""

from __future__ import annotations

from robustcli.errors import printable

_LONGEST = 200


class Refused(Exception):
    """A request that gets a 4xx or a 503.

    Args:
        status: of HTTP.
        text: one line that says what is wrong.
        retry: seconds after which the same request may be served; 0 where it never will be.
    """

    def __init__(self, status: int, text: str, *, retry: int = 0) -> None:
        super().__init__(text)
        self.status, self.text, self.retry = status, printable(text)[:_LONGEST], retry

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the reply."""
        return {"Retry-After": str(self.retry)} if self.retry else {}
