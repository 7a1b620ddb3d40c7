"""Reads the URL of a database as far as the driver leaves it to us; the rest is the driver's.

Several hosts are tried one after the other here: the driver tries them under one time limit, so
that a first one which swallows every packet would never let it come to the second.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit, urlunsplit

SCHEMES: Final = ("postgresql", "postgres")
EXAMPLE: Final = "postgresql://user:password@host"
POSTGRES_PORT: Final = 5432
CONNECT_TIMEOUT_S: Final = 10
_TIMEOUT: Final = "connect_timeout"
_BY_CHOICE: Final = "prefer-standby"
"""The only demand on a host for which all the others must have been seen."""
_DEMANDS: Final = ("any", "primary", "standby", "read-write", "read-only", _BY_CHOICE)


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """What a URL says, by whom it is meant for."""

    one_by_one: tuple[str, ...]
    """URLs for the driver, to be tried in this order."""
    connect_timeout_s: int
    """For each of them."""
    user: str
    names_certificates: bool
    is_socket: bool


def read_database_url(text: str) -> DatabaseUrl:
    """Read a URL; raises ValueError, whose words hold nothing of a password."""
    try:
        parts = _split(text)
        query = {name: found[-1] for name, found in _parse(parts.query).items()}
    except ValueError:
        raise ValueError(f"must be a URL like {EXAMPLE}, with special characters as %40") from None
    if parts.scheme not in SCHEMES:
        raise ValueError(f"must be a URL like {EXAMPLE}")
    login, _, hosts = _login_and_hosts(parts)
    _check_ports(hosts.split(","), query.get("port", ""))
    listed = hosts or query.get("host", "")
    return DatabaseUrl(
        one_by_one=tuple(_one_by_one(parts, query)),
        connect_timeout_s=_seconds(query.get(_TIMEOUT, "")),
        user=unquote(login.partition(":")[0]) or query.get("user", ""),
        names_certificates=any(name.startswith("ssl") and name != "sslmode" for name in query),
        is_socket=not listed or unquote(listed).startswith("/"),
    )


def place_of(text: str) -> str:
    """Say which server and database a URL means, without user and password."""
    parts = _split(text)
    query = {name: found[-1] for name, found in _parse(parts.query).items()}
    ports = query.get("port", "").split(",")
    hosts = _login_and_hosts(parts)[2] or query.get("host", "") or "the driver's host"
    readable = [unquote(host) for host in hosts.split(",")]
    numbers = ports * len(readable) if len(ports) == 1 else ports
    named = [_with_port(host, port) for host, port in zip(readable, numbers, strict=False)]
    place = ",".join(named) + (unquote(parts.path) or f"/{query.get('dbname', '')}".rstrip("/"))
    return place.encode(errors="backslashreplace").decode()  # what was no text may be shown


def _split(text: str) -> SplitResult:
    """Split a URL of several hosts too: Python's own refuses brackets within them, from 3.12 on."""
    scheme, _, rest = text.partition("://")
    ends = (place for mark in "/?#" if (place := rest.find(mark)) >= 0)
    end = min(ends, default=len(rest))
    hosts = rest[:end]
    if hosts.count("[") != hosts.count("]"):
        raise ValueError("a bracket is missing")
    return urlsplit(f"{scheme}://{rest[end:]}")._replace(netloc=hosts)


def _with_port(host: str, port: str) -> str:
    has_one = host.rpartition(":")[2].isdigit() and not host.endswith("]")
    return host if has_one or " " in host else f"{host}:{port or POSTGRES_PORT}"


def _parse(query: str) -> dict[str, list[str]]:
    return parse_qs(query, strict_parsing=True) if query else {}


def _login_and_hosts(parts: SplitResult) -> tuple[str, str, str]:
    """Split as the driver does: at the first @."""
    login, at, hosts = parts.netloc.partition("@")
    return (login, at, hosts) if at else ("", "", login)


def _check_ports(hosts: list[str], listed: str) -> None:
    """Find what is no port; most often it is a part of a password that was not encoded."""
    ports = [host.rpartition(":")[2] for host in hosts if ":" in host and not host.endswith("]")]
    for port in [*map(unquote, ports), *filter(None, listed.split(","))]:
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            raise ValueError(
                "must have a port from 1 to 65535 after the host, and special characters of "
                "the password as %40"
            )


def _seconds(text: str) -> int:
    """Read `connect_timeout` as libpq does: nothing and 0 mean that none is set."""
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{_TIMEOUT} must be a number of seconds")
    return int(text or 0) or CONNECT_TIMEOUT_S


def _one_by_one(parts: SplitResult, query: dict[str, str]) -> Iterator[str]:
    login, at, hosts = _login_and_hosts(parts)
    demand = query.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS") or "any"
    if demand not in _DEMANDS:
        raise ValueError(f"target_session_attrs must be one of {', '.join(_DEMANDS)}")
    if demand == _BY_CHOICE:
        yield _url(parts, parts.netloc, {})
    elif hosts:
        for host in hosts.split(","):
            yield _url(parts, f"{login}{at}{host}", {})
    else:
        listed, ports = query.get("host", "").split(","), query.get("port", "").split(",")
        if len(ports) not in {1, len(listed)}:
            raise ValueError("must have one port, or as many as hosts")
        numbers = ports * len(listed) if len(ports) == 1 else ports
        for host, port in zip(listed, numbers, strict=True):
            yield _url(parts, parts.netloc, {"host": host, "port": port})


def _url(parts: SplitResult, netloc: str, instead: dict[str, str]) -> str:
    """Write a URL anew, for one host, without what the driver does not know."""
    kept = [
        parameter
        for parameter in parts.query.split("&")
        if parameter and _name(parameter) not in {_TIMEOUT, *instead}
    ]
    given = [f"{name}={_quoted(value)}" for name, value in instead.items() if value]
    path = "" if parts.path == "/" else parts.path  # the driver takes it for a name without letters
    return urlunsplit((parts.scheme, netloc, path, "&".join([*kept, *given]), ""))


def _name(pair: str) -> str:
    return unquote(pair.partition("=")[0])


def _quoted(value: str) -> str:
    return value.replace("%", "%25").replace("&", "%26").replace("+", "%2B").replace(" ", "%20")
