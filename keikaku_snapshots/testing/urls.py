"""The URL that a fixture hands to a test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from keikaku_snapshots.postgres.url import DatabaseURL


class URLText(str):
    """A database URL as text, **with** its password, as psycopg and asyncpg take it.

    It is a plain ``str`` to everybody, but for its ``repr``, which hides the password: pytest shows
    that of every argument of a failed test.
    """

    #: The same, parsed.
    url: DatabaseURL

    __slots__ = ("url",)

    @classmethod
    def of(cls, url: DatabaseURL) -> Self:
        """Make the text of a URL."""
        text = cls(url.text)
        text.url = url
        return text

    @property
    def database(self) -> str:
        """Name of the database."""
        return self.url.database

    def for_sqlalchemy(self, driver: str = "psycopg") -> str:
        """Return the URL for ``create_engine`` or ``create_async_engine``, with the driver named.

        Args:
            driver: ``psycopg`` (both kinds of engine), ``psycopg2`` or ``asyncpg``.

        Raises:
            InvalidURLError: The driver is unknown.
        """
        return self.url.for_sqlalchemy(driver)

    def __repr__(self) -> str:
        return repr(str(self.url))
