"""Services that take messages, on loopback: Slack's webhook and a mail server, real ones of their kind."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from aiosmtpd.controller import Controller

if TYPE_CHECKING:
    from pathlib import Path

#: Where Slack takes messages.
SLACK_HOST = "hooks.slack.com"


@dataclass
class Web:
    """What a web service got, and how it answers."""

    #: ``ok``, ``500``, ``hang`` or ``cut``.
    behaviour: str = "ok"
    #: Path and body of each request.
    requests: list[tuple[str, str]] = field(default_factory=list)
    #: Set when a request has arrived.
    arrived: threading.Event = field(default_factory=threading.Event)
    #: Set when those that hang may go on.
    released: threading.Event = field(default_factory=threading.Event)


class _Handler(http.server.BaseHTTPRequestHandler):
    web: ClassVar[Web]
    tls: ClassVar[ssl.SSLContext | None] = None
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:
        """As a proxy that keeps the traffic to itself."""
        assert self.tls is not None
        self.send_response(200)
        self.end_headers()
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_POST(self) -> None:
        """Take a message."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.web.requests.append((self.path, body))
        self.web.arrived.set()
        self.close_connection = True
        if self.web.behaviour == "hang":
            self.web.released.wait(60)
        elif self.web.behaviour != "cut":
            self.send_response(200 if self.web.behaviour == "ok" else int(self.web.behaviour))
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    def finish(self) -> None:
        """Close, also inside of TLS."""
        super().finish()
        self.connection.close()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that has gone is what these tests are about."""


class WebEndpoint:
    """A web server on loopback.

    Args:
        certificate: Makes it a proxy too that answers in Slack's place; PEM file with key and certificate.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.web = Web()
        tls = None
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate)
        handler = type("Handler", (_Handler,), {"web": self.web, "tls": tls})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Let go what hangs, and stop."""
        self.web.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Mails:
    """What a mail server got."""

    #: Recipients and text of each mail.
    taken: list[tuple[list[str], bytes]] = field(default_factory=list)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        """Take a mail."""
        self.taken.append((envelope.rcpt_tos, envelope.content))
        return "250 OK"


class MailEndpoint(Controller):
    """An SMTP server on a free port of loopback."""

    def __init__(self) -> None:
        self.mails = Mails()
        super().__init__(self.mails, hostname="127.0.0.1", port=0)

    def _trigger_server(self) -> None:
        # It asks itself once whether it answers, at the port that it was given: 0 is none.
        assert isinstance(self.server, asyncio.Server)
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


def slack_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for Slack's name: file with key and certificate, file to trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, SLACK_HOST)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SLACK_HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, both = directory / "trusted.pem", directory / "both.pem"
    trusted.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    both.write_bytes(private + trusted.read_bytes())
    return both, trusted
