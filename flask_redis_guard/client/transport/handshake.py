"""The handshake of a new connection: sent in one piece, and settled before the first reply."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from redis import exceptions as redis_errors
from redis._parsers import _RESP2Parser, _RESP3Parser
from redis.utils import str_if_bytes

from flask_redis_guard.client.outcomes import judge


def _expect_ok(reply: Any) -> None:
    if str_if_bytes(reply) != "OK":
        raise redis_errors.ConnectionError("Handshake refused")


def _ignore(_: Any) -> None:
    """Nothing depends on the reply."""


#: How a reader of hiredis, or a buffer of redis-py's own parser, is asked what it holds.
_UNREAD = ("has_data", "unread_bytes")


def _perhaps() -> bool:
    """Of a parser that we do not know: it may hold what has arrived."""
    return True


class Greeting(NamedTuple):
    """One command of the handshake, and what is done with its reply."""

    words: tuple[Any, ...]
    #: Called with the reply; raises where the connection may not be used.
    check: Callable[[Any], object]
    #: Whether a command may follow before the reply is known: an error harms nobody.
    harmless: bool = False

    def __repr__(self) -> str:
        """Return its name only: error trackers collect variables, and this one has a password."""
        return f"<Greeting {self.words[0]}>"


class Handshake:
    """What a connection says first, and what becomes of it; a part of ``GuardedConnection``."""

    #: The handshake that a server has accepted from a connection of this class.
    accepted: ClassVar[tuple[Any, ...] | None] = None
    #: Tells whether other connections of its pool are connected.
    has_company: Callable[[Any], bool] = staticmethod(lambda connection: False)
    _greetings: deque[Greeting] | None = None  # sent, and not yet answered
    _greeted: tuple[Any, ...] = ()  # their words
    _unread: Callable[[], Any]  # tells whether the parser holds something
    _owed = 0
    _altered = False
    # What redis-py's classes and GuardedConnection give:
    _write: Callable[[Any], None]
    disconnect: Callable[..., None]
    _sock: Any
    _parser: Any
    _command_packer: Any
    _connect_callbacks: list[Any]
    _reset_himport_state: Callable[[], None]
    client_name: Any
    credential_provider: Any
    db: Any
    password: Any
    protocol: Any
    redis_connect_func: Any
    set_parser: Callable[[Any], None]
    username: Any

    def greetings(self) -> list[Greeting]:
        """Return the commands of the handshake; they are sent together."""
        greetings = self._introduction()
        if self.client_name:
            words = ("CLIENT", "SETNAME", self.client_name)
            greetings.append(Greeting(words, _expect_ok))
        for what, value in self._library():
            if value:
                greetings.append(Greeting(("CLIENT", "SETINFO", what, value), _ignore, True))
        if self.db:
            greetings.append(Greeting(("SELECT", self.db), _expect_ok))
        return greetings

    def _introduction(self) -> list[Greeting]:
        login: tuple[Any, ...] = ()
        if self.credential_provider is not None:
            login = tuple(self.credential_provider.get_credentials())
        elif self.username or self.password:
            given = (self.username, self.password or "")
            login = given if given[0] else given[1:]
        if str(self.protocol) != "3":
            return [Greeting(("AUTH", *login), _expect_ok)] if login else []
        words: tuple[Any, ...] = ("HELLO", 3)
        if login:
            words += ("AUTH", *(login if len(login) > 1 else ("default", *login)))
        return [Greeting(words, self._check_hello)]

    def _check_hello(self, reply: Any) -> None:
        if not isinstance(reply, dict) or 3 not in (reply.get(b"proto"), reply.get("proto")):
            raise redis_errors.ConnectionError("Invalid RESP version")
        self.handshake_metadata = reply

    def _library(self) -> list[tuple[str, Any]]:
        driver = getattr(self, "driver_info", None)  # redis-py 7.1 and newer
        if driver is not None:
            return [("LIB-NAME", driver.formatted_name), ("LIB-VER", driver.lib_version)]
        names = (("LIB-NAME", "lib_name"), ("LIB-VER", "lib_version"))
        return [(what, getattr(self, name, None)) for what, name in names]

    def _greet(self) -> None:
        self._owed, self._greetings, self._greeted = 0, None, ()
        if self.redis_connect_func is None:
            self.on_connect()
        else:
            self.redis_connect_func(self)
        self._altered = False  # by the handshake it is what everybody expects
        self._resubscribe()

    def on_connect(self) -> None:
        """Send the handshake in one piece; its replies are read before any other."""
        if hasattr(self, "_reset_himport_state"):  # redis-py 8
            self._reset_himport_state()
        self._prepare_parser()
        greetings = self.greetings()
        self._greeted = tuple(greeting.words for greeting in greetings)
        self._greetings = deque(greetings)
        if greetings:
            pack = self._command_packer.pack
            self._write(b"".join(b"".join(pack(*greeting.words)) for greeting in greetings))

    def on_connect_check_health(self, *_: Any, **__: Any) -> None:
        self.on_connect()

    def _prepare_parser(self) -> None:
        parser: Any = self._parser
        if str(self.protocol) == "3" and isinstance(parser, _RESP2Parser):
            self.set_parser(_RESP3Parser)
            self._parser.EXCEPTION_CLASSES = parser.EXCEPTION_CLASSES
        self._parser.on_connect(self)
        parts = (getattr(self._parser, name, None) for name in ("_reader", "_buffer"))
        found = (getattr(part, name, None) for part in parts for name in _UNREAD)
        self._unread = next((each for each in found if each is not None), _perhaps)

    @property
    def may_follow(self) -> bool:
        """Whether a command may be sent before the replies to the handshake are known.

        A login or a database that a server has accepted before will be accepted again; where it
        is not, the command's caller is refused nevertheless.
        """
        return self._greeted == type(self).accepted or all(
            g.harmless for g in self._greetings or ()
        )

    def _settle_greetings(self) -> None:
        """Read the replies to the handshake.

        :raises redis.RedisError: if the connection may not be used; it is closed then, unless the
            time was used up.
        """
        greetings = self._greetings
        while greetings:
            try:
                reply = super().read_response(disconnect_on_error=False)  # type: ignore[misc]
                greetings[0].check(reply)
            except redis_errors.TimeoutError:
                raise
            except redis_errors.ResponseError as exc:
                if not greetings[0].harmless:
                    type(self).accepted = None  # from here on nothing follows before the reply
                    self.disconnect()
                    if judge(exc).reason is not None:
                        raise
                    raise redis_errors.ConnectionError("Handshake refused") from exc
            except redis_errors.ConnectionError as exc:
                if judge(exc).reason == "authentication":
                    type(self).accepted = None
                self.disconnect()
                refusal = self._refusal(exc)
                if refusal is exc:
                    raise
                raise refusal from exc
            except BaseException:
                self.disconnect()
                raise
            greetings.popleft()
        type(self).accepted = self._greeted

    def _last_words(self) -> Exception | None:
        """Return what the server said before it closed a new connection, if it said something."""
        if not self._greetings:
            return None
        self._sock.settimeout(0)
        try:
            super().read_response(disconnect_on_error=False)  # type: ignore[misc]
        except redis_errors.ConnectionError as exc:
            return self._refusal(exc) if judge(exc).reason == "max-clients" else None
        except (redis_errors.RedisError, OSError):
            return None
        return None

    def _refusal(self, exc: redis_errors.ConnectionError) -> redis_errors.ConnectionError:
        """Return an error of connecting, told from a failure if other connections serve."""
        if judge(exc).reason == "max-clients" and self.has_company(self):
            return redis_errors.ConnectionError(f"While others serve: {exc}")
        return exc

    def _resubscribe(self) -> None:
        self._connect_callbacks = [ref for ref in self._connect_callbacks if ref()]
        for ref in self._connect_callbacks:
            callback = ref()
            if callback is not None:
                callback(self)
