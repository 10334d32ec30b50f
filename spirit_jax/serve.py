"""Serve a model: a page to talk to it, and APIs over HTTP and WebSocket.

    python -m spirit_jax.serve --checkpoint runs/tiny/checkpoints/500
    python -m spirit_jax.serve --checkpoint DIR --quantize int8 --slots 16 --port 8080
    SPIRIT_JAX_API_KEY=... python -m spirit_jax.serve --checkpoint DIR --host 0.0.0.0

Open the address that it prints. `/v1/generate` continues text and speech, `/v1/chat/completions` and its sister paths
are those of OpenAI's API, `/metrics` is for Prometheus, and `/api` lists everything. Needs the extra serve:
pip install 'spirit_jax[serve]'.
"""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spirit_jax import config
from spirit_jax.core.errors import SpiritError, exit_codes
from spirit_jax.core.files import read_text
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.serving.limits import Limits

if TYPE_CHECKING:
    from spirit_jax.inference.scheduler import Capacity

# Functions import what they run, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.serve"
API_KEY = "SPIRIT_JAX_API_KEY"
"""Environment variable with the API key."""

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=")
"""The beginning of an adapter that has a name."""
_SHORTLIST = 64  # as many as `SamplingFeatures.of` allows for a top_k without a sort of the whole vocabulary


class ServeError(SpiritError):
    """A server that cannot start as asked; the message names the option."""


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """A model, what its slots hold, where the server listens, and who may use it."""

    checkpoint: str
    """Converted checkpoint, or a step of a training run (RUN/checkpoints/STEP)."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 means every network of this machine, and then an API key is advised."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    name: str | None = None
    """Name of the model in the APIs. Null: the checkpoint's directory, such as tiny-500 for a step of a run."""
    slots: int = 8
    """Requests that run at once; each holds a KV cache."""
    length: int | None = None
    """Longest prompt and answer together, in tokens. Null: the model's context, at most 4096."""
    max_new_tokens: int = 1024
    """Longest answer in tokens; a second of speech takes 20 to 40."""
    any_top_k: bool = False
    """Allow every top_k. Otherwise it may be 1 to 64, which is faster because no token needs a sorted vocabulary."""
    tokens_per_step: int = 8
    """Tokens that each request generates before they are sent; fewer come sooner and cost more."""
    warm_up: Literal["none", "one", "all"] = "one"
    """Shapes to compile before the server answers: those of one request at a time, or of every number of requests.
    Others are compiled when they are needed, while all requests wait."""
    limits: Limits = Limits()
    """Limits of requests."""
    api_key_file: str | None = None
    """File with the API key. Null: the environment variable SPIRIT_JAX_API_KEY; without either there is no key."""
    origins: list[str] = dataclasses.field(default_factory=list)
    """Other site whose pages may use the server, such as https://example.com, or *; may be repeated."""
    allowed_hosts: list[str] = dataclasses.field(default_factory=list)
    """Name that clients may use for this server; may be repeated. Without any: localhost for a server that listens on
    this machine alone, else every name."""
    tls_certificate: str | None = None
    """PEM file of a certificate; with it the server speaks HTTPS, which browsers need for a microphone."""
    tls_key: str | None = None
    """PEM file of the certificate's key."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation. Null: the checkpoint's."""
    quantize: Quantization | None = None
    """Keep the weights in 8 bits (int8) or 4 bits (int4). Null: in floats."""
    adapter: list[str] = dataclasses.field(default_factory=list)
    """Low-rank adapter of the checkpoint: a step of a run with a section `lora`, or a directory in PEFT's format. DIR
    is merged into the model that is served. NAME=DIR is a model of its own, which requests choose as NAME or
    MODEL:NAME; it may be repeated."""
    mesh: MeshConfig = MeshConfig(1, 1, 1)
    """Devices: tensor spreads one model, data spreads the requests."""

    def __post_init__(self) -> None:
        for field in ("slots", "max_new_tokens", "tokens_per_step"):
            if getattr(self, field) < 1:
                raise ServeError(f"{field} must be 1 or more, found {getattr(self, field)}")
        if not 0 <= self.port < 2**16:
            raise ServeError(f"port must be 0 to 65535, found {self.port}")
        if self.length is not None and self.length < 2:
            raise ServeError(f"length must be 2 or more, found {self.length}")
        named = self.named_adapters()
        if len(self.adapter) > max(len(named), 1):
            raise ServeError("--adapter DIR is merged into the model and stands alone; give several as NAME=DIR")
        names = [self.model_name(), *(name for name, _ in named)]
        if len(set(names)) < len(names):
            raise ServeError(f"--adapter: a name comes twice in {', '.join(names)}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ServeError("--tls-certificate and --tls-key belong together")

    def merged_adapter(self) -> str | None:
        """Return the directory of the adapter that is merged into the model that is served, None without one."""
        return self.adapter[0] if self.adapter and not self.named_adapters() else None

    def named_adapters(self) -> list[tuple[str, str]]:
        """Return the name and the directory of each adapter that requests choose."""
        return [(found[1], text[found.end() :]) for text in self.adapter if (found := _NAMED.match(text))]

    def capacity(self, context: int) -> "Capacity":
        """Return what the scheduler has room for, for a model with this context."""
        from spirit_jax.inference.sampling import SamplingFeatures
        from spirit_jax.inference.scheduler import Capacity

        length = min(self.length or 4096, context)
        features = SamplingFeatures(shortlist=None if self.any_top_k else _SHORTLIST)
        return Capacity(self.slots, length, min(self.max_new_tokens, length - 1), features)

    def api_key(self) -> str | None:
        """Return the API key, or None if there is none.

        Raises:
            ServeError: the key is empty.
        """
        if self.api_key_file is not None:
            key, where = read_text(self.api_key_file, ServeError).strip(), self.api_key_file
        elif API_KEY in os.environ:
            key, where = os.environ[API_KEY].strip(), API_KEY
        else:
            return None
        if not key:
            raise ServeError(f"{where}: the API key is empty")
        return key

    def model_name(self) -> str:
        """Return the name of the model in the APIs."""
        path = pathlib.Path(self.checkpoint).absolute()
        if self.name is not None:
            return self.name
        return f"{path.parents[1].name}-{path.name}" if path.parent.name == "checkpoints" else path.name


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. The exit code is 2 for a bad argument, 1 for a server that cannot run."""
    settings = config.parse(ServeConfig, arguments, PROG, __doc__)
    with exit_codes(PROG):
        run(settings)


def run(settings: ServeConfig) -> None:
    """Load the model, compile, and serve until the process is asked to end."""
    try:
        import uvicorn

        from spirit_jax.serving.app import make_app
        from spirit_jax.serving.security import LOOPBACK, Access
        from spirit_jax.serving.service import Service
        from spirit_jax.serving.warm_up import warm_up
    except ImportError as error:
        raise ServeError(f"{error.name} is not installed; run: pip install 'spirit_jax[serve]'") from error
    import jax

    from spirit_jax.inference.spiritlm import SpiritLM
    from spirit_jax.parallel.mesh import make_mesh

    logging.basicConfig(format="%(levelname)s: %(message)s")
    key = settings.api_key()
    local = settings.host in LOOPBACK
    hosts = settings.allowed_hosts or (LOOPBACK if local else None)
    access = Access(key, settings.origins, hosts)
    sizes = dataclasses.astuple(settings.mesh)
    devices = jax.devices()[: math.prod(sizes)] if min(sizes) > 0 else jax.devices()
    mesh = make_mesh(settings.mesh, devices)
    model = SpiritLM.from_pretrained(
        settings.checkpoint, settings.dtype, mesh, settings.quantize, adapter=settings.merged_adapter()
    )
    adapters = {
        name: model.with_adapter(settings.checkpoint, directory) for name, directory in settings.named_adapters()
    }
    capacity = settings.capacity(model.config.max_position_embeddings)
    service = Service(model, capacity, settings.limits, settings.tokens_per_step, adapters)
    if settings.warm_up != "none":
        print("compiling ...", file=sys.stderr, flush=True)
        warm_up(service.lm, capacity, every_batch=settings.warm_up == "all")
    if not local and key is None:
        logging.warning("everyone who reaches %s may use this server: set %s", settings.host, API_KEY)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(service, settings.model_name(), access),
            host=settings.host,
            port=settings.port,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws_max_size=settings.limits.upload_bytes,
            timeout_graceful_shutdown=math.ceil(settings.limits.seconds),
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):
        _serve(server, settings)


def _serve(server, settings: ServeConfig) -> None:
    """Run a uvicorn server on a socket of our own, and print its address when it answers."""
    import socket

    try:
        listening = socket.create_server((settings.host, settings.port), family=_family(settings.host))
    except OSError as error:
        raise ServeError(f"cannot listen on {settings.host}:{settings.port}: {error}; choose another --port") from error
    with listening:
        port = listening.getsockname()[1]
        scheme = "http" if settings.tls_certificate is None else "https"
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"serving {settings.model_name()} at {scheme}://{shown}:{port} (Ctrl-C ends it)", flush=True)
        server.run([listening])


def _family(host: str):
    import socket

    return socket.AF_INET6 if ":" in host else socket.AF_INET


if __name__ == "__main__":
    main()
