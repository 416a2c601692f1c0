"""The errors a person is meant to read: one sentence each, what is wrong with which input, and what to do."""

from __future__ import annotations


class HeadraceError(Exception):
    """Something went wrong that the request did not cause; the command line ends with exit code 1."""


class RequestError(HeadraceError, ValueError):
    """The request, or a file it names, cannot be used; the command line ends with exit code 2."""


class Cancelled(HeadraceError):  # noqa: N818 (what happened is no error)
    """The caller stopped a generation; no picture was made."""
