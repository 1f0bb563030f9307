"""Requests that end with an error, and how they say so: in the shape of OpenAI's API."""

import math
from typing import Any

from seqloom.serve.http.guard import error_body


class RefusedError(Exception):
    """A request that is not answered, with the status and the words that tell why."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        retry_after: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = {} if retry_after is None else {"retry-after": str(max(1, math.ceil(retry_after)))}

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), param=self.param, code=self.code)


def bad(message: str, param: str | None = None) -> RefusedError:
    """What the client asked for cannot be."""
    return RefusedError(400, message, param=param)
