# maskserve in three images that share their lines:
#
#   docker build -t maskserve .                            cpu, the default: serves on any machine
#   docker build -t maskserve:gpu --target gpu .           the same with onnxruntime-gpu and the CUDA libraries
#   docker build -t maskserve:export --target export .     the same with torch: writes bundles
#
#   docker run --rm -p 127.0.0.1:8000:8000 --read-only --cap-drop ALL maskserve
#
# Dependencies are installed from the locks in stages of their own: what ships has no pip, no cache and no compiler.
# Build arguments: PYTHON (3.11 to 3.14), VERSION and REVISION for the labels, and for the export target PIP_FIND_LINKS or
# PIP_EXTRA_INDEX_URL, where a CPU build of torch lies (left alone, pip brings the CUDA build).

ARG PYTHON=3.12

# ---- one environment a target ----

FROM python:${PYTHON}-slim AS install
ENV VENV=/opt/venv PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils tini \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv --without-pip "$VENV"
COPY requirements /requirements

# libonnxruntime is the library for C programs, 29 MB that the Python module beside it does not load.
FROM install AS install-cpu
RUN sh /requirements/install.sh --require-hashes -r /requirements/serve.txt \
    && rm /opt/venv/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*

FROM install AS install-gpu
RUN sh /requirements/install.sh --require-hashes -r /requirements/gpu.txt

FROM install-cpu AS install-export
ARG PIP_FIND_LINKS=""
ARG PIP_EXTRA_INDEX_URL=""
RUN sh /requirements/install.sh -r /requirements/export.txt

# ---- what all of them are ----

FROM python:${PYTHON}-slim AS code
WORKDIR /app
COPY bundles bundles
COPY server server
COPY loadtest loadtest
RUN python -m compileall -q server loadtest

FROM python:${PYTHON}-slim AS maskserve
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /app --shell /usr/sbin/nologin maskserve
COPY --from=install /usr/bin/tini /usr/bin/tini
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MASKSERVE_HOST=0.0.0.0 \
    MASKSERVE_PORT=8000 \
    MASKSERVE_BUNDLES=/app/bundles
USER 10001:10001
EXPOSE 8000
# Ready, not merely alive: `service_healthy` then means that every model answers as it was exported.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-m", "server.healthcheck"]
ENTRYPOINT ["tini", "--", "python", "-m", "server"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="maskserve" \
      org.opencontainers.image.description="Inference server for segmentation: pictures in, COCO run-length masks out" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM maskserve AS gpu
COPY --from=install-gpu /opt/venv /opt/venv
COPY --from=code /app /app

FROM maskserve AS export
COPY --from=install-export /opt/venv /opt/venv
COPY --from=code /app /app
COPY models models
COPY export export
HEALTHCHECK NONE
ENTRYPOINT ["tini", "--", "python", "-m", "export"]

FROM maskserve AS cpu
COPY --from=install-cpu /opt/venv /opt/venv
COPY --from=code /app /app
