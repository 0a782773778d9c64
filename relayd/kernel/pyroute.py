"""pyroute2's netlink for links, addresses, routes and WireGuard, without the rest of it.

Importing the package itself imports all that it has (IPDB, NDB, plan9, wireless, ...): 6 MiB of an agent's
memory, and 50 ms of its start. So while these parts are imported, a package that has nothing in it stands in
its place.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

_NAME = "pyroute2"


def _stand_in() -> ModuleType:
    spec = find_spec(_NAME)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = ModuleType(_NAME)
    package.__path__ = list(spec.submodule_search_locations)
    return package


_standing_in = _NAME not in sys.modules
if _standing_in:
    sys.modules[_NAME] = _stand_in()
try:
    from pyroute2.iproute.linux import AsyncIPRoute
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.netlink.generic.wireguard import (
        WG_CMD_SET_DEVICE,
        WG_GENL_VERSION,
        WGPEER_F_REMOVE_ME,
        WGPEER_F_REPLACE_ALLOWEDIPS,
        WGPEER_F_UPDATE_ONLY,
        AsyncWireGuard,
        wgmsg,
    )
finally:
    if _standing_in:
        del sys.modules[_NAME]

__all__ = [
    "NLM_F_ACK",
    "NLM_F_REQUEST",
    "WGPEER_F_REMOVE_ME",
    "WGPEER_F_REPLACE_ALLOWEDIPS",
    "WGPEER_F_UPDATE_ONLY",
    "WG_CMD_SET_DEVICE",
    "WG_GENL_VERSION",
    "AsyncIPRoute",
    "AsyncWireGuard",
    "NetlinkError",
    "wgmsg",
]
