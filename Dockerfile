# Everything in one image: the commands, Prefect's server, and its workers.
#
#     docker build -t rudalle-flows .                                        # CPUs
#     docker build -t rudalle-flows:cuda --build-arg TORCH=cuda .            # NVIDIA GPUs
#     docker run --rm -v "$PWD/output:/work/output" rudalle-flows rudalle-flows run demo
#
# It also runs with a read-only root, if /tmp and /home/rudalle can be written:
#
#     docker run --rm --read-only --tmpfs /tmp --tmpfs /home/rudalle:uid=10001 \
#       -v "$PWD/output:/work/output" rudalle-flows rudalle-flows run demo
ARG BASE=debian:bookworm-slim
ARG TORCH=cpu

FROM ${BASE} AS python
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 \
 && rm -rf /var/lib/apt/lists/*

# --- built with a compiler, which stays here ----------------------------------------------------

FROM python AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt pyproject.toml ./
COPY tools ./tools

# Layers from the largest, which hardly ever changes, to the smallest.
FROM build AS packages
ARG TORCH
RUN python tools/install_torch.py ${TORCH}
RUN pip install -c constraints.txt setuptools wheel Cython \
 && pip install -c constraints.txt --no-build-isolation youtokentome
ARG EXTRAS=""
RUN python tools/requirements.py ${EXTRAS} > requirements.txt \
 && pip install -c constraints.txt -r requirements.txt \
 && pip uninstall -y Cython

FROM packages AS wheel
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# --- what is shipped ----------------------------------------------------------------------------

FROM python AS runtime
ARG TORCH
# Triton compiles the start of each of its kernels.
RUN if [ "${TORCH}" = cuda ]; then \
      apt-get update \
      && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
      && rm -rf /var/lib/apt/lists/*; \
    fi
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=0.2.0.dev0
LABEL org.opencontainers.image.title="rudalle-flows" \
      org.opencontainers.image.description="Turn a table of prompts into an image dataset with ruDALL-E" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 10001 rudalle \
 && mkdir -p /work/output \
 && chown -R rudalle:rudalle /work
COPY --from=packages /opt/venv /opt/venv
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --no-compile /wheels/*.whl
COPY prefect.yaml /work/prefect.yaml
USER rudalle
WORKDIR /work
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s CMD ["rudalle-flows", "--version"]
CMD ["rudalle-flows", "--help"]
