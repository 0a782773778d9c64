"""What kind of NAT it is: each kind's evidence, and evidence that isn't enough."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from relayd.endpoints import Endpoint
from relayd.paths.nat_class import (
    Filtering,
    Mapping,
    NatType,
    Observation,
    classify,
    from_probes,
    predict,
)

OWN = {ip_address("192.168.1.2"), ip_address("203.0.113.7")}
PORT = 51820


def seen(*pairs: str) -> list[Observation]:
    """Each is "server mapped"; a server or an address without a port has 3478, or PORT."""
    observations = []
    for pair in pairs:
        server, mapped = pair.split()
        observations.append(
            Observation(
                Endpoint.parse(server if ":" in server else f"{server}:3478"),
                Endpoint.parse(mapped if ":" in mapped else f"{mapped}:{PORT}"),
            )
        )
    return observations


A, A2, B = "198.51.100.1", "198.51.100.1:3479", "198.51.100.2"
NAT = "203.0.113.99"


@pytest.mark.parametrize(
    ("observations", "filtering", "nat", "mapping"),
    [
        ([], "UNKNOWN", "UNKNOWN", "UNKNOWN"),
        ([f"{A} {NAT}"], "UNKNOWN", "UNKNOWN", "UNKNOWN"),
        ([f"{A} {NAT}", f"{A} {NAT}"], "UNKNOWN", "UNKNOWN", "UNKNOWN"),
        ([f"{A} {NAT}", f"{B} {NAT}"], "UNKNOWN", "CONE", "INDEPENDENT"),
        ([f"{A} {NAT}", f"{A2} {NAT}"], "NOT_BY_PORT", "CONE", "INDEPENDENT"),
        ([f"{A} {NAT}", f"{B} {NAT}"], "INDEPENDENT", "CONE", "INDEPENDENT"),
        ([f"{A} {NAT}", f"{B} {NAT}"], "ADDRESS", "CONE", "INDEPENDENT"),
        ([f"{A} {NAT}", f"{B} {NAT}"], "ADDRESS_AND_PORT", "PORT_RESTRICTED_CONE", "INDEPENDENT"),
        ([f"{A} {NAT}:1", f"{B} {NAT}:1"], "ADDRESS_AND_PORT", "PORT_RESTRICTED_CONE", "INDEPENDENT"),
        ([f"{A} {NAT}:1", f"{A2} {NAT}:2"], "UNKNOWN", "SYMMETRIC", "ADDRESS_AND_PORT"),
        ([f"{A} {NAT}:1", f"{A2} {NAT}:1", f"{B} {NAT}:2"], "ADDRESS", "SYMMETRIC", "ADDRESS"),
        ([f"{A} {NAT}:1", f"{B} {NAT}:2"], "UNKNOWN", "SYMMETRIC", "ADDRESS_AND_PORT"),
        ([f"{A} {NAT}", f"{B} 203.0.113.98"], "UNKNOWN", "SYMMETRIC", "ADDRESS_AND_PORT"),
        ([f"{A} 203.0.113.7"], "UNKNOWN", "OPEN", "UNKNOWN"),
        ([f"{A} 203.0.113.7", f"{B} 203.0.113.7"], "NOT_BY_PORT", "OPEN", "INDEPENDENT"),
        ([f"{A} 203.0.113.7", f"{B} 203.0.113.7"], "ADDRESS_AND_PORT", "PORT_RESTRICTED_CONE", "INDEPENDENT"),
        ([f"{A} 203.0.113.7:9", f"{B} 203.0.113.7:9"], "UNKNOWN", "CONE", "INDEPENDENT"),
    ],
)
def test_the_kind_follows_from_the_evidence(
    observations: list[str], filtering: str, nat: str, mapping: str
) -> None:
    verdict = classify(seen(*observations), Filtering[filtering], own=OWN, port=PORT)
    assert (verdict.nat, verdict.mapping) == (NatType[nat], Mapping[mapping])


def test_what_a_verdict_says_beside_the_kind() -> None:
    verdict = classify(seen(f"{A} {NAT}:9", f"{A2} {NAT}:9"), Filtering.ADDRESS, own=OWN, port=PORT)
    assert str(verdict.mapped) == f"{NAT}:9"
    assert (verdict.translated, verdict.keeps_port, verdict.one_server) == (True, False, True)
    verdict = classify(seen(f"{A} 203.0.113.7", f"{B} 203.0.113.7"), Filtering.UNKNOWN, own=OWN, port=PORT)
    assert (verdict.translated, verdict.keeps_port, verdict.one_server) == (False, True, False)


def test_the_kinds_are_called_as_in_a_peers_status() -> None:
    assert [one.value for one in NatType] == ["open", "cone", "port-restricted-cone", "symmetric", "unknown"]


@pytest.mark.parametrize(
    ("ports", "first", "step"),
    [
        ([100, 101, 102], 103, 1),
        ([100, 101, 103], 104, 1),
        ([100, 102, 104], 106, 2),
        ([500, 498, 496], 494, -2),
        ([], None, 0),
        ([100], None, 0),
        ([100, 100], None, 0),
        ([100, 101], 102, 1),
        ([100, 100, 101], 102, 1),
        ([104, 102], 100, -2),
        ([100, 5123], None, 0),
        ([100, 101, 5000], None, 0),
        ([100, 3000, 17], None, 0),
        ([100, 102, 101], None, 0),
        ([65534, 65535], None, 0),
        ([3, 2, 1], None, 0),
    ],
)
def test_ports_that_follow_each_other_are_continued(ports: list[int], first: int | None, step: int) -> None:
    observations = seen(*(f"198.51.100.{n} {NAT}:{port}" for n, port in enumerate(ports, 1)))
    found = predict(observations)
    if first is None:
        assert found is None
        return
    assert found is not None
    assert (found.first.port, found.step) == (first, step)


def test_a_prediction_is_for_symmetric_nats_of_one_address() -> None:
    ports = seen(f"{A} {NAT}:7", f"{A2} {NAT}:8", f"{B} {NAT}:9")
    assert classify(ports, Filtering.UNKNOWN, own=OWN, port=PORT).prediction is not None
    assert predict(seen(f"{A} {NAT}:7", f"{A2} {NAT}:8", f"{B} 203.0.113.98:9")) is None


@pytest.mark.parametrize(
    ("verify", "probe", "filtering"),
    [
        (True, True, Filtering.NOT_BY_PORT),
        (False, True, Filtering.NOT_BY_PORT),
        (True, False, Filtering.ADDRESS_AND_PORT),
        (False, False, Filtering.UNKNOWN),
    ],
)
def test_a_relays_probes_tell_the_filtering(verify: bool, probe: bool, filtering: Filtering) -> None:
    assert from_probes(verify, probe) is filtering
