"""WireKube's resources as an operator writes them."""

from __future__ import annotations

KEY = "mDBJK0hxAGm9FGfXNBoqFwrB2UVrqAvX5l3RrM0wFmQ="
"""A public key, of whom it may be."""


def peer(name: str, **spec: object) -> dict[str, object]:
    return {
        "apiVersion": "wirekube.io/v1alpha1",
        "kind": "WireKubePeer",
        "metadata": {"name": name},
        "spec": spec,
    }


def mesh(**spec: object) -> dict[str, object]:
    return peer("default", **spec) | {"kind": "WireKubeMesh"}
