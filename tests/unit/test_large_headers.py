"""What a worker reads of headers that are too large or too many, and what it must not miss."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from pamqp import decode
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from shared.rabbitmq.wire.lenient_decoding import (
    LARGEST,
    MOST,
    bound_headers,
    read_odd_properties,
)
from tests.support.raw_amqp import table

Read = Callable[[dict[str, Any]], dict[str, Any]]
LEFT_OUT = {"x-consent-headers": "left out: too large"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Have this process read headers as a worker does, for one test."""
    for name in ("shortstr", "timestamp", "table"):
        monkeypatch.setitem(decode.METHODS, name, decode.METHODS[name])
    bound_headers()
    read_odd_properties()  # at each connection; what a worker bounded stays bounded

    def over_the_wire(headers: dict[str, Any]) -> dict[str, Any]:
        sent = ContentHeader(0, 0, Basic.Properties(headers=headers, app_id="kiosk"))
        got = ContentHeader()
        got.unmarshal(sent.marshal())
        assert got.properties.app_id == "kiosk"
        return dict(got.properties.headers or {})

    return over_the_wire


def test_small_headers_are_read(read: Read) -> None:
    headers = {"traceparent": "00-" + "a" * 32, "x-death": [{"count": 1, "queue": "q"}]}
    assert read(headers) == headers


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "h" * LARGEST},
        {f"{number}": None for number in range(MOST + 1)},
        {"x": [None] * (MOST + 1)},
        {"x": {f"{number}": [None] * 10 for number in range(10)}},
    ],
    ids=["large", "many", "many in one", "many in many"],
)
def test_too_many_or_too_large_ones_are_left_out(read: Read, headers: dict[str, Any]) -> None:
    assert read(headers) == LEFT_OUT


@pytest.mark.usefixtures("read")
@pytest.mark.parametrize("count", [0, 3, 2**40])
def test_how_often_a_message_came_back_is_seen_beside_them(count: int) -> None:
    forged, told = ((b"x-delivery-count", b"l" + struct.pack(">q", n)) for n in (-1, count))
    large = (b"z", b"S" + struct.pack(">I", 100_000) + b"h" * 100_000)
    headers = table((b"a", b"F" + table(forged)), told, large)
    end, found = decode.METHODS["table"](headers + b"more")
    assert end == len(headers)
    assert found == {**LEFT_OUT, "x-delivery-count": count}
