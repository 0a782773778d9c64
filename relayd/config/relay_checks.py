"""What must hold between the settings of a relay, each of which is right by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from relayd.config.reading import Found
from relayd.errors import ConfigError


def admission_mistakes(found: Mapping[str, Found], environ: Mapping[str, str]) -> Iterator[ConfigError]:
    """Ways to let agents in that don't go together, and what one of them lacks."""
    if "admit" not in found:
        return
    admit = found["admit"].place
    for other in ("allow_list", "open"):
        if other in found and found[other].value:
            hint = f"leave out one of admit and {other}"
            yield admit.error("who is let in is said twice", hint)
    if "api_server" not in found and not environ.get("KUBERNETES_SERVICE_HOST"):
        yield admit.error("nothing says where the API server is", "--api-server URL")


def tls_mistakes(found: Mapping[str, Found]) -> Iterator[ConfigError]:
    """A certificate that is named twice, or half, or not at all where one is needed."""
    files = [name for name in ("tls_cert", "tls_key") if name in found]
    self_signed = "tls_self_signed" in found and found["tls_self_signed"].value
    if self_signed and files:
        hint = f"leave out tls_self_signed, or {' and '.join(files)}"
        yield found["tls_self_signed"].place.error("a certificate is named already", hint)
    elif len(files) == 1:
        (other,) = {"tls_cert", "tls_key"} - set(files)
        yield found[files[0]].place.error(f"{other} is missing", "a certificate and its key come together")
    elif not files and not self_signed and "tls_only" in found and found["tls_only"].value:
        hint = "tls_cert and tls_key, or tls_self_signed"
        yield found["tls_only"].place.error("there is no certificate", hint)
