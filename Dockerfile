# syntax=docker/dockerfile:1
# Longhouse as a container: one binary on a small Debian, as a user without rights, data in /data.
#
#   docker build -t longhouse .
#   docker run --network host -v longhouse:/data -e LONGHOUSE_SERVER_NAME=example.org longhouse

FROM rust:1.94-slim-bookworm AS build
# C compiler and cmake: aws-lc and SQLite are compiled from source.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock clippy.toml rustfmt.toml ./
COPY crates ./crates
COPY tests ./tests
COPY config ./config
# The page is committed as built: no Node is needed here.
COPY web/dist ./web/dist
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --package longhouse \
    && cp target/release/longhouse /usr/local/bin/longhouse

FROM debian:12.12-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 8008 --user-group --home-dir /data --shell /usr/sbin/nologin longhouse \
    && install --directory --owner longhouse --group longhouse --mode 0700 /data
COPY --from=build /usr/local/bin/longhouse /usr/local/bin/longhouse

ENV LONGHOUSE_DATA_DIR=/data \
    LONGHOUSE_LISTEN__ADDRESSES='["0.0.0.0:8008"]'
USER longhouse
WORKDIR /data
VOLUME /data
EXPOSE 8008/tcp 3478/udp 3478/tcp 7882/udp 7881/tcp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=3s --start-period=10s CMD ["longhouse", "ready"]
ENTRYPOINT ["longhouse"]
CMD ["serve"]
