# Training and encoding on TPU VMs and GKE, with data, weights and runs in buckets (docs/tpu.md).
#   docker build --tag spirit_jax .
# `.ci/run image` checks this file and runs its steps without Docker.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN useradd --create-home --uid 1000 spirit
WORKDIR /app

# Every package is one file of a known hash; tools/lock.py writes the lists. Only promise has to be built.
COPY requirements-build.lock requirements.lock ./
RUN pip install --require-hashes --only-binary :all: -r requirements-build.lock \
    && pip install --require-hashes --only-binary :all: --no-binary promise --no-build-isolation -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY spirit_jax ./spirit_jax
RUN pip install --no-deps --no-build-isolation .

USER 1000
WORKDIR /home/spirit
CMD ["python", "-m", "spirit_jax", "--help"]
