# Both services and the consent command in one image; which one runs is the command's choice:
#   docker run … consent python -m command_service run
# It runs as an unprivileged user and writes nothing: give it a read-only file system.
# Only the job that defines the broker's users writes a file, as the broker's own user (999).
FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/consent
COPY requirements-image.lock ./
RUN /opt/consent/bin/pip install --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE ./
COPY command_service ./command_service
COPY projection_service ./projection_service
COPY shared ./shared
RUN /opt/consent/bin/pip install --no-deps --no-build-isolation . \
    && /opt/consent/bin/pip uninstall --yes hatchling pip

FROM python:3.11-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin consent \
    && install --directory --owner=999 --mode=700 /definitions
COPY --from=build /opt/consent /opt/consent
ENV PATH=/opt/consent/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HTTP_HOST=* HTTP_PORT=8080
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 \
    CMD ["python", "-m", "shared.worker.health_check"]
CMD ["consent", "--help"]
