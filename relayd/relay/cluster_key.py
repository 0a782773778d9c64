"""The key of a relay that is one of several in a cluster: all of them have the same, in a Secret.

Agents know a relay by its key, at the name that all replicas share. So the first that starts makes the
Secret, and the others read it: the API server takes one of two that are made at the same time. An operator
can make it beforehand (`kubectl create secret generic wirekube-relay-key --from-file=relay.key`).
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from relayd.config import RelayConfig
from relayd.coordination.kubernetes.api_error import ApiError, UnreachableError
from relayd.coordination.kubernetes.client import ApiClient, access_of
from relayd.errors import ConfigError
from relayd.keys import PrivateKey
from relayd.observe import log
from relayd.secret_file import RELAY_KEY, new_key, private_key

SECRET = "wirekube-relay-key"
RETRY_S = 5.0
CONFLICT, NOT_FOUND = 409, 404


class _Secret(msgspec.Struct):
    data: dict[str, str] = {}


async def share_key(config: RelayConfig, environ: Mapping[str, str] = os.environ) -> None:
    """In a pod: have the shared key in the state directory, made if there is none anywhere.

    While the API server is away a key that is there already will do; without one it is waited for. Raises
    ConfigError for a Secret that holds none, or another than the file, HostError when that can't be written.
    """
    namespace = environ.get("POD_NAMESPACE")
    if not namespace:
        return
    path = f"/api/v1/namespaces/{namespace}/secrets"
    file = Path(config.state_dir) / RELAY_KEY
    client = ApiClient(access_of(config, environ))
    logger = log.get(object=f"Secret {namespace}/{SECRET}")
    told = ""
    try:
        while True:
            try:
                text = await _from_api(client, path)
                break
            except (ApiError, UnreachableError) as error:
                if file.exists():
                    logger.warning("relay_key.from_file", file=str(file), reason=str(error))
                    return
                if str(error) != told:
                    logger.warning("relay_key.awaited", reason=str(error))
                told = str(error)
                await trio.sleep(RETRY_S)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
            await client.aclose()
    try:
        key = PrivateKey.from_base64(text)
    except ValueError as error:
        raise ConfigError(str(error), source=f"Secret {namespace}/{SECRET}", key=RELAY_KEY) from error
    if private_key(file, make=key.to_base64) != key:
        hint = "it has been changed: a pod that is made anew takes the new one"
        raise ConfigError("is not the one in the Secret", source=str(file), hint=hint)
    logger.info("relay_key.shared", key=key.public())


async def _from_api(client: ApiClient, path: str) -> str:
    """What the Secret holds, in `wg genkey`'s form. Raises ApiError and UnreachableError."""
    try:
        body = await client.request("GET", f"{path}/{SECRET}")
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET},
            "data": {RELAY_KEY: base64.b64encode(new_key().encode()).decode()},
        }
        try:
            body = await client.request("POST", path, body=secret)
        except ApiError as made:
            if made.status != CONFLICT:  # another replica was faster
                raise
            body = await client.request("GET", f"{path}/{SECRET}")
    held = msgspec.json.decode(body, type=_Secret).data.get(RELAY_KEY, "")
    return base64.b64decode(held).decode("ascii", "replace").strip()
