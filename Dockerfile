# The image that the Helm chart runs.
#
#   docker build -t sightline:0.1.0 .                                 for CPUs
#   docker build -t sightline:0.1.0-cuda --build-arg VARIANT=cuda .   for NVIDIA GPUs, several GB larger
#
# The base images are Debian 12. Nothing of the build but the files that docker/layout.sh puts together gets into the image.

ARG VARIANT=cpu

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3 python3-pip python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV SIGHTLINE_CACHE=/cache CARGO_TARGET_DIR=/target CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
WORKDIR /src
COPY . .
# What a developer has too: libtorch and the model; and the binary with all optimisations.
RUN cargo xtask build

FROM build AS files-cpu
RUN sh docker/layout.sh cpu /target/release/sightline /cache/libtorch-2.11.0-cpu \
        /cache/models/nsfwjs-mobilenet-v2-4.4.0-r1 /image

FROM build AS files-cuda
RUN sh docker/layout.sh cuda /target/release/sightline /cache/libtorch-2.11.0-cpu \
        /cache/models/nsfwjs-mobilenet-v2-4.4.0-r1 /image

FROM files-${VARIANT} AS files

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=files /image/ /
ENV PATH=/opt/sightline/bin:/usr/local/bin:/usr/bin:/bin NVIDIA_DRIVER_CAPABILITIES=compute,utility
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/sightline
EXPOSE 7400 7401 7402 7403 7404
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/sightline/bin/sightline"]
CMD ["--help"]
