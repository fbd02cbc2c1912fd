# The server in a container, on a CPU or on CUDA.
#
#   docker build -t speechgpt2 .
#   docker build -t speechgpt2:cuda --build-arg TORCH=cu128 .
#   docker run -p 8000:8000 -e SG2_API_KEYS=a-long-secret speechgpt2
#
# TORCH names PyTorch's package index: cpu, cu126, cu128 … The CUDA image needs the NVIDIA container toolkit.

FROM python:3.12-slim AS build
ARG TORCH=cpu
WORKDIR /src
RUN python -m venv /opt/speechgpt2
ENV PATH=/opt/speechgpt2/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY speechgpt2 speechgpt2
RUN pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/${TORCH} '.[server,webrtc,wyoming,telemetry,media]'

FROM python:3.12-slim
# The C compiler builds the kernels for CPUs (speechgpt2/nn/native.py).
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home speechgpt2
COPY --from=build /opt/speechgpt2 /opt/speechgpt2
ENV PATH=/opt/speechgpt2/bin:$PATH SG2_HOST=0.0.0.0 SG2_LOG_JSON=true
USER speechgpt2
EXPOSE 8000
# The server stops when its engine fails, so "unhealthy" and "stopped" mean the same; both are for a restart.
HEALTHCHECK --start-period=60s --interval=10s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["sg2", "serve"]
