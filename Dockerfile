# One broker, with the etcd that a voter of a cluster runs. docs/cluster.md says how it is used and how this file was checked.
#   docker build -t headrace . && docker run -p 7580:7580 -p 127.0.0.1:7581:7581 -v headrace:/var/lib/headrace headrace

FROM python:3.12-slim-bookworm AS build
# the release of the base image pins what Debian's are
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/headrace \
    && /opt/headrace/bin/pip install --no-cache-dir .

FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends etcd-server \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 7580 --home-dir /var/lib/headrace --create-home --shell /usr/sbin/nologin headrace
COPY --from=build /opt/headrace /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH \
    HEADRACE_BROKER__DATA_DIR=/var/lib/headrace \
    HEADRACE_LISTEN__NATIVE=0.0.0.0:7580 \
    HEADRACE_LISTEN__ADMIN=0.0.0.0:7581
USER 7580
WORKDIR /var/lib/headrace
VOLUME ["/var/lib/headrace"]
# clients, admin, other brokers, gossip, etcd for clients, etcd for voters
EXPOSE 7580 7581 7582 7583/tcp 7583/udp 7584 7585
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=8s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 7581, timeout=5); c.request('GET', '/admin/api/live'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["headrace"]
CMD ["start"]
