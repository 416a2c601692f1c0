"""What a request over HTTP is refused with."""

from __future__ import annotations

from headrace.errors import HeadraceError


class Refused(HeadraceError):  # noqa: N818 (as Cancelled is named)
    """A request that is not carried out: an HTTP status and one sentence. retry_after: seconds, where waiting helps."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after
