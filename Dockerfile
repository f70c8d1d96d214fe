# CPU:  docker build -t video_to_world .
# CUDA: docker build -t video_to_world:cuda --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 --build-arg CONSTRAINTS= .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG EXTRAS=viewer
ARG CONSTRAINTS="-c constraints/cpu.txt"
# gcc and Python's headers: on a GPU, Triton builds a small launcher with them at the first run.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/video_to_world
COPY . .
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -e ".[${EXTRAS}]" ${CONSTRAINTS}
ENV PATH=/opt/venv/bin:$PATH
EXPOSE 8080
# docker run --rm -v "$PWD:/data" video_to_world --config.input-video /data/clip.mp4 --config.root-path /data/world   (CUDA: also --gpus all)
# Viewer: docker run --rm -v "$PWD:/data" -p 8080:8080 --entrypoint python video_to_world -m utils.view_checkpoint --config.root-path /data/world --config.host 0.0.0.0
ENTRYPOINT ["python", "/opt/video_to_world/run_reconstruction.py"]
