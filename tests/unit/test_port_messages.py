"""What is on WireGuard's port besides WireGuard."""

from __future__ import annotations

import pytest

from relayd.wire.port_messages import PortMessage, kind_of_untrusted


@pytest.mark.parametrize(
    ("hex_text", "kind"),
    [
        ("000100002112a442", PortMessage.STUN),
        ("010100002112a442" + "00" * 12, PortMessage.STUN),
        ("524c59f09f949101", PortMessage.SEALED),
        ("524c59f09f949102", None),
        ("524c59f09f9491", None),
        ("010000002112a443", None),
        ("400100002112a442", None),
        ("01000000" + "00" * 144, None),
        ("2112a442", None),
        ("", None),
    ],
)
def test_datagrams_are_told_apart_by_their_first_eight_bytes(hex_text: str, kind: PortMessage | None) -> None:
    assert kind_of_untrusted(bytes.fromhex(hex_text)) is kind
