"""The bytes that the gateway sends to the Data API and to the client. A recorder plays the Data API."""

from __future__ import annotations

import asyncio
import gzip
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web
from multidict import CIMultiDict

from scripts.local.gateway import Gateway
from scripts.local.stack import Secrets, Stack
from tests.conftest import free_port_block

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n[]"


@dataclass(frozen=True)
class Message:
    """A request or a response, as it was transmitted."""

    first_line: str
    headers: CIMultiDict[str]
    body: bytes

    @classmethod
    def parse(cls, wire: bytes) -> Self:
        head, _, body = wire.partition(b"\r\n\r\n")
        first_line, *lines = head.decode("latin-1").split("\r\n")
        return cls(
            first_line, CIMultiDict((name, value) for name, _, value in (line.partition(": ") for line in lines)), body
        )


@dataclass(frozen=True)
class Exchange:
    """One request through the gateway: the request that the Data API received, and the response to the client."""

    sent: Message
    answered: Message


@dataclass(frozen=True)
class RecordedGateway:
    """A gateway in front of a recorder, which sends one prepared response to one request."""

    local: Stack = field(repr=False)

    def request(self, method: str, target: str, *lines: str, body: bytes = b"", answer: bytes = JSON) -> Exchange:
        """Sends a request. `lines` are its headers, in addition to Host and Connection."""
        head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *lines])
        sent, answered = asyncio.run(self._exchange(f"{head}\r\n\r\n".encode() + body, answer))
        return Exchange(Message.parse(sent), Message.parse(answered))

    async def _exchange(self, request: bytes, answer: bytes) -> tuple[bytes, bytes]:
        sent = bytearray()

        async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            sent.extend(await reader.readuntil(b"\r\n\r\n"))
            headers = Message.parse(bytes(sent)).headers
            sent.extend(await reader.readexactly(int(headers.get("Content-Length", 0))))
            if "Transfer-Encoding" in headers:
                sent.extend(await reader.readuntil(b"\r\n0\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
            writer.close()

        runner = web.AppRunner(Gateway(self.local).application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.local.ports.gateway).start()
        async with await asyncio.start_server(record, "127.0.0.1", self.local.ports.data_api):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.local.ports.gateway)
            writer.write(request)
            answered = await asyncio.wait_for(reader.read(), 10)
            writer.close()
        await runner.cleanup()
        return bytes(sent), answered


@pytest.fixture
def gateway(tmp_path: Path) -> RecordedGateway:
    return RecordedGateway(Stack(tmp_path, free_port_block(), Secrets.of(tmp_path)))


@pytest.fixture
def key(gateway: RecordedGateway) -> str:
    return gateway.local.secrets.publishable_key


# --- requests to the Data API ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "forwarded"),
    [
        ("?apikey=KEY", ""),
        ("?apikey=KEY&select=id", "?select=id"),
        ("?select=id&apikey=KEY&limit=1", "?select=id&limit=1"),
        ("?apikey=KEY&apikey=KEY", ""),
        ("?%61pikey=KEY&limit=1", "?limit=1"),
        ("?apikey=KEY&title=like.*%2Cb%20c+d&or=(a.eq.%22x%22,b.is.null)&x", "?title=like.*%2Cb%20c+d&or=(a.eq.%22x%22,b.is.null)&x"),
        ("?myapikey=1&apikey=KEY&apikeys=2", "?myapikey=1&apikeys=2"),
    ],
)  # fmt: skip
def test_a_key_in_the_query_is_not_forwarded(gateway: RecordedGateway, key: str, query: str, forwarded: str) -> None:
    sent = gateway.request("GET", f"/rest/v1/projects{query.replace('KEY', key)}").sent
    assert sent.first_line == f"GET /rest/v1/projects{forwarded} HTTP/1.1"
    assert key not in str(sent)


def test_a_key_in_the_query_is_not_forwarded_if_the_headers_have_one_too(gateway: RecordedGateway, key: str) -> None:
    sent = gateway.request("GET", f"/rest/v1/projects?apikey={key}&limit=1", f"apikey: {key}").sent
    assert sent.first_line == "GET /rest/v1/projects?limit=1 HTTP/1.1"
    assert key not in str(sent)


@pytest.mark.parametrize("target", ["?a=%2c%2C&b=%7e~&c=%C3%A9", '?a="b"|{}', "/%2F..%2f?x=1&&y", "?a=b?c=d"])
def test_a_target_without_a_key_is_forwarded_byte_for_byte(gateway: RecordedGateway, key: str, target: str) -> None:
    sent = gateway.request("GET", f"/rest/v1/projects{target}", f"apikey: {key}").sent
    assert sent.first_line == f"GET /rest/v1/projects{target} HTTP/1.1"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PATCH", "DELETE"])
def test_a_request_without_a_body_gets_no_headers_that_the_client_did_not_send(
    gateway: RecordedGateway, key: str, method: str
) -> None:
    sent = gateway.request(method, "/rest/v1/rpc/ready", f"apikey: {key}").sent
    assert sent.body == b""
    assert {name.lower() for name in sent.headers} - {"content-length", "connection"} == {
        "host", "authorization", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"
    }  # fmt: skip
    assert sent.headers.get("Content-Length", "0") == "0"


def test_a_post_of_length_zero_gets_no_content_type(gateway: RecordedGateway, key: str) -> None:
    sent = gateway.request("POST", "/rest/v1/rpc/ready", f"apikey: {key}", "Content-Length: 0").sent
    assert (sent.headers.getall("Content-Length"), sent.headers.get("Content-Type")) == (["0"], None)


def test_a_body_keeps_its_type_and_length(gateway: RecordedGateway, key: str) -> None:
    lines = (f"apikey: {key}", "Content-Type: text/csv", "Content-Length: 5")
    sent = gateway.request("POST", "/rest/v1/projects", *lines, body=b"a\nb\nc").sent
    assert (sent.headers.getall("Content-Type"), sent.headers.getall("Content-Length")) == (["text/csv"], ["5"])
    assert ("Transfer-Encoding" in sent.headers, sent.body) == (False, b"a\nb\nc")


def test_a_body_without_a_content_type_gets_none(gateway: RecordedGateway, key: str) -> None:
    sent = gateway.request("POST", "/rest/v1/rpc/ready", f"apikey: {key}", "Content-Length: 2", body=b"{}").sent
    assert ("Content-Type" in sent.headers, sent.body) == (False, b"{}")


def test_a_chunked_body_stays_chunked(gateway: RecordedGateway, key: str) -> None:
    lines = (f"apikey: {key}", "Transfer-Encoding: chunked")
    sent = gateway.request("POST", "/rest/v1/projects", *lines, body=b"2\r\n[]\r\n0\r\n\r\n").sent
    assert (sent.headers["Transfer-Encoding"], "Content-Length" in sent.headers) == ("chunked", False)
    assert sent.body == b"2\r\n[]\r\n0\r\n\r\n"


def test_a_repeated_header_is_forwarded_unchanged(gateway: RecordedGateway, key: str) -> None:
    lines = (f"apikey: {key}", "Prefer: return=minimal", "Prefer: count=exact")
    sent = gateway.request("GET", "/rest/v1/projects", *lines).sent
    assert sent.headers.getall("Prefer") == ["return=minimal", "count=exact"]


def test_a_compressed_body_stays_compressed(gateway: RecordedGateway, key: str) -> None:
    body = gzip.compress(b"[]")
    lines = (f"apikey: {key}", "Content-Encoding: gzip", f"Content-Length: {len(body)}")
    sent = gateway.request("POST", "/rest/v1/projects", *lines, body=body).sent
    assert (sent.headers["Content-Encoding"], sent.body) == ("gzip", body)


def test_a_long_list_in_a_url_passes_in_both_directions(gateway: RecordedGateway, key: str) -> None:
    target = f"/projects?id=in.({','.join(['00000000-0000-0000-0000-000000000000'] * 500)})"
    answer = JSON.replace(b"Content-Length", f"Content-Location: {target}\r\nContent-Length".encode())
    exchange = gateway.request("GET", f"/rest/v1{target}", f"apikey: {key}", answer=answer)
    assert exchange.sent.first_line == f"GET /rest/v1{target} HTTP/1.1"
    assert exchange.answered.headers["Content-Location"] == target


# --- responses to the client -------------------------------------------------------------------------------------------


EMPTY = {
    "no content": ("PATCH", b"HTTP/1.1 204 No Content\r\n\r\n", None),
    "created, of length zero": ("POST", b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", "0"),
    "created, chunked": ("POST", b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "0"),
    "not modified": ("GET", b"HTTP/1.1 304 Not Modified\r\n\r\n", None),
    "head": ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", None),
    "head, chunked": ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    "head, of some length": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "7"),
}  # fmt: skip


@pytest.mark.parametrize(("method", "answer", "length"), EMPTY.values(), ids=EMPTY)
def test_an_empty_response_gets_no_content_type(
    gateway: RecordedGateway, key: str, method: str, answer: bytes, length: str | None
) -> None:
    answered = gateway.request(method, "/rest/v1/projects", f"apikey: {key}", answer=answer).answered
    assert answered.first_line == answer.decode().partition("\r\n")[0]
    assert answered.body == b""
    assert [answered.headers.get(name) for name in ("Content-Type", "Transfer-Encoding", "Content-Length")] == [
        None, None, length
    ]  # fmt: skip


def test_the_response_to_head_keeps_the_content_type_of_get(gateway: RecordedGateway, key: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Range: 0-1/2\r\n\r\n"
    answered = gateway.request("HEAD", "/rest/v1/projects", f"apikey: {key}", answer=answer).answered
    assert answered.headers["Content-Type"] == "application/json; charset=utf-8"
    assert (answered.headers["Content-Range"], answered.body) == ("0-1/2", b"")


def test_a_response_keeps_its_length(gateway: RecordedGateway, key: str) -> None:
    answered = gateway.request("GET", "/rest/v1/projects", f"apikey: {key}").answered
    assert (answered.headers.getall("Content-Length"), "Transfer-Encoding" in answered.headers) == (["2"], False)
    assert answered.body == b"[]"


def test_a_chunked_response_stays_chunked(gateway: RecordedGateway, key: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na,b\r\n0\r\n\r\n"
    answered = gateway.request("GET", "/rest/v1/projects", f"apikey: {key}", answer=answer).answered
    assert (answered.headers["Transfer-Encoding"], "Content-Length" in answered.headers) == ("chunked", False)
    assert answered.body == b"3\r\na,b\r\n0\r\n\r\n"


def test_browsers_may_read_the_headers_of_postgrest_and_each_cors_header_is_sent_once(
    gateway: RecordedGateway, key: str
) -> None:
    answer = JSON.replace(
        b"\r\n\r\n", b"\r\naccess-control-allow-origin: *\r\nAccess-Control-Expose-Headers: Date\r\n\r\n"
    )
    answered = gateway.request("GET", "/rest/v1/projects", f"apikey: {key}", answer=answer).answered
    assert answered.headers.getall("Access-Control-Allow-Origin") == ["*"]
    [exposed] = answered.headers.getall("Access-Control-Expose-Headers")
    assert {"Content-Range", "Location"} <= set(exposed.split(", "))
