"""An internet for tests: NATs of each kind, in network namespaces."""

from __future__ import annotations

from tests.helpers.natlab.internet import Internet, UnsupportedError
from tests.helpers.natlab.site import Ipv6, Nat, Site

__all__ = ["Internet", "Ipv6", "Nat", "Site", "UnsupportedError"]
