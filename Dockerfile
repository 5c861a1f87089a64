# Training image. Build it in a checkout:  docker build -t longtail-det2:0.1.0 .
# Run:  docker run --rm --gpus all --shm-size 8g -v "$PWD/datasets:/workspace/datasets" \
#           -v "$PWD/output:/workspace/output" longtail-det2:0.1.0 train --config-file CONFIG --num-gpus 8
# docs/clusters.md says more. The wheels of torch bring their own CUDA libraries, cuDNN and NCCL, so the smallest CUDA
# image does; its CUDA 13 asks for NVIDIA driver 580 or newer.
FROM nvidia/cuda:13.0.2-base-ubuntu24.04

# Versions from Ubuntu's archive are not pinned: the archive keeps only the newest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Ubuntu's image has a user of that number already.
RUN if id ubuntu >/dev/null 2>&1; then userdel --remove ubuntu; fi \
    && useradd --create-home --uid 1000 --shell /bin/bash trainer \
    && mkdir -p /opt/venv /workspace/datasets /workspace/output \
    && chown -R trainer:trainer /opt/venv /workspace

USER trainer
WORKDIR /workspace
ENV PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

# What changes rarely comes first, so that a change of the code does not fetch torch again.
COPY --chown=trainer:trainer constraints.txt ./
RUN python3 -m venv /opt/venv \
    && python -m pip install -q -c constraints.txt --upgrade pip setuptools wheel \
    && python -m pip install -q -c constraints.txt torch torchvision

COPY --chown=trainer:trainer scripts/install_detectron2.py scripts/
RUN python scripts/install_detectron2.py

COPY --chown=trainer:trainer . .
RUN python -m pip install -q -c constraints.txt --no-build-isolation -e ".[export,hub,slurm]" \
    && python -m longtail_det2.utils.collect_env --check

ENTRYPOINT ["longtail-det2"]
CMD ["--help"]
