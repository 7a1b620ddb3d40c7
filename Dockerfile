# Both services and the consent command in one image; which one runs is the command's choice:
#   docker run … consent:local python -m command_service run
# It runs as an unprivileged user and writes nothing: give it a read-only file system.
#
# Behind a wall: --build-arg BASE= an image of your own, with your authority's certificate in it,
# and PIP_INDEX_URL= your mirror. To pin the base, give it by digest: python@sha256:…
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
ARG PIP_INDEX_URL PIP_CERT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# What builds stays here; what is installed lies in an environment of its own, without even pip.
RUN python -m venv /opt/tools && python -m venv --without-pip /opt/consent
COPY requirements-build.lock requirements-image.lock ./
RUN /opt/tools/bin/pip install --require-hashes -r requirements-build.lock \
    && /opt/tools/bin/pip --python /opt/consent install --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY command_service ./command_service
COPY projection_service ./projection_service
COPY shared ./shared
RUN /opt/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir=/wheel . \
    && /opt/tools/bin/pip --python /opt/consent install --no-deps /wheel/*.whl

FROM ${BASE}
# What the base image has for building is only something to be found fault with.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin consent \
    && { python -m pip uninstall --yes --quiet setuptools wheel pip || true; }
COPY --from=build /opt/consent /opt/consent
ENV PATH=/opt/consent/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HTTP_HOST=* HTTP_PORT=8080
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Consent" \
    org.opencontainers.image.description="May this person see this patient's records?" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-m", "shared.worker.health_check"]
CMD ["consent", "--help"]
