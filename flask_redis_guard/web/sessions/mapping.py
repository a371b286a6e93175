"""A session as a mapping, whatever it takes to have its values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, TypeVar

from flask.sessions import SessionMixin

SelfT = TypeVar("SelfT", bound="LazyMapping")


class LazyMapping(SessionMixin):
    """Reads and writes values that are fetched the first time that anybody asks."""

    modified = False
    accessed = False

    @abstractmethod
    def _open(self) -> dict[str, Any]:
        """Return the values, fetched where they are not yet."""

    @abstractmethod
    def _require_writable(self) -> None:
        """Raise where a change could not be saved."""

    def __getitem__(self, key: str) -> Any:
        return self._open()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())

    def __repr__(self) -> str:
        return repr(self._open())

    def __setitem__(self, key: str, value: Any) -> None:
        self._require_writable()
        self._open()[key] = value
        self.modified = True

    def __delitem__(self, key: str) -> None:
        self._require_writable()
        del self._open()[key]
        self.modified = True

    def __or__(self, other: Any) -> dict[str, Any]:
        return {**self._open(), **other}

    def __ror__(self, other: Any) -> dict[str, Any]:
        return {**other, **self._open()}

    def __ior__(self: SelfT, other: Any) -> SelfT:
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        """Return the values as a plain ``dict``."""
        return self._open().copy()
