# One image for the relay (as it stands), the agent (`relayd agent`, root with NET_ADMIN) and the cleanup of a node
# (`relayd cleanup`, likewise). Nothing in it depends on the processor: docker buildx build --platform
# linux/amd64,linux/arm64 .

ARG DEBIAN=12.12-slim

FROM debian:${DEBIAN} AS build
# Debian 12 has these for as long as it is supported; the base is pinned, its security updates are wanted.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# What relayd needs first, a layer that stays until pyproject.toml changes. All of it comes as wheels for both
# processors: no compiler, not even here.
COPY pyproject.toml README.md ./
COPY relayd/__init__.py relayd/
COPY systemd systemd
RUN python3 -m venv /opt/relayd \
    && /opt/relayd/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: .
COPY relayd relayd
RUN /opt/relayd/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall . \
    && /opt/relayd/bin/pip uninstall -y --quiet setuptools pip \
    && python3 -m compileall -q /opt/relayd

FROM debian:${DEBIAN}
# iptables: the agent's exemptions in Kubernetes' chains, both variants. ca-certificates: relays with TLS.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates iptables python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 65532 relayd \
    && useradd --uid 65532 --gid relayd --no-create-home --home-dir /var/lib/wirekube --shell /usr/sbin/nologin relayd \
    && install -d -m 0700 -o relayd -g relayd /var/lib/wirekube \
    && install -d -m 0755 -o relayd -g relayd /run/relayd
COPY --from=build /opt/relayd /opt/relayd

ENV PATH=/opt/relayd/bin:$PATH \
    PYTHONUNBUFFERED=1

ARG DEBIAN
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="relayd" \
    org.opencontainers.image.description="Paths for WireGuard nodes that can't reach each other" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.base.name="debian:${DEBIAN}"

USER 65532:65532
WORKDIR /var/lib/wirekube
# The relay; STUN on the same port and the next one; metrics, if --http says another address than loopback.
EXPOSE 3478/tcp 3478/udp 3479/udp 9478/tcp
# What is running here answers on its control socket, relay or agent.
HEALTHCHECK --interval=30s --timeout=10s --start-period=15s CMD ["relayd", "status", "--json"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["relayd"]
CMD ["serve"]
