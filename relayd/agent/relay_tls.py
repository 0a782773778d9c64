"""TLS towards a relay (`relayds://`): whom to believe.

With a pin in the join string: whoever holds the key that it names, whatever else the certificate says.
Without: whom the system's certificate authorities vouch for, by the host's name. Either way the relay proves
itself as all relays do afterwards: TLS hides who talks, and gets through where nothing else does.
"""

from __future__ import annotations

import hmac
import socket
import ssl
from hashlib import sha256

import trio
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import InvalidVersion, load_der_x509_certificate

from relayd.join import JoinString, format_pin
from relayd.netio.tls_socket import TlsSocket, client_handshake


async def secure(sock: socket.socket, relay: JoinString, *, timeout_s: float) -> TlsSocket:
    """TLS over `sock`, which belongs to what is returned, and is closed otherwise.

    Raises OSError saying what is wrong with the relay's certificate, or what went wrong.
    """
    try:
        with trio.fail_after(timeout_s):
            tls, certificate = await client_handshake(sock, context_for(relay), server_hostname=relay.host)
        shown = pin_of(certificate)
        if relay.pin is not None and not hmac.compare_digest(shown, relay.pin):
            raise OSError(
                f"TLS: the relay's certificate has the key pin={format_pin(shown)}, "
                f"and the join string says pin={relay.shown_pin}"
            )
    except trio.TooSlowError as error:
        sock.close()
        raise TimeoutError(f"TLS: no answer within {timeout_s:g} s") from error
    except ssl.SSLCertVerificationError as error:
        sock.close()
        raise OSError(f"TLS: the relay's certificate: {error.verify_message}") from error
    except ssl.SSLError as error:
        sock.close()
        raise OSError(f"TLS: {error.reason or error}") from error
    except BaseException:
        sock.close()
        raise
    return tls


def context_for(relay: JoinString) -> ssl.SSLContext:
    """Whom to believe, as OpenSSL has it. A pin is compared afterwards (`secure`)."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if relay.pin is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def pin_of(certificate: bytes) -> bytes:
    """SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469, section 2.4). Raises OSError for what is
    none."""
    try:
        key = load_der_x509_certificate(certificate).public_key()
    except (ValueError, InvalidVersion, UnsupportedAlgorithm) as error:  # whoever is in between chose it
        raise OSError(f"TLS: the relay's certificate can't be read: {error}") from error
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
