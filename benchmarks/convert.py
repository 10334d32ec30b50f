"""Measures the memory and time of importing and exporting a synthetic Llama of Spirit LM's width.

    python -m benchmarks.convert [--layers 4] [--directory /tmp] [--step]

With 32 layers the model has the full 7 billion parameters: 13.5 GB in bfloat16, three times on disk. Memory does not
depend on the number of layers, because a conversion holds a block of one tensor at a time. Each command runs in a
process of its own. "memory" is the peak of its anonymous resident pages, without the mapped pages of files, which the
kernel drops when it needs memory. "start" is that peak for a process that only imports the libraries. `--step` also
saves the model as a training run does, which takes its size in memory, and exports that step.
"""

import argparse
import filecmp
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from spirit_jax.convert.components import llama
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.arrays import LazyArray, nbytes
from spirit_jax.convert.table import tensor_mappings
from spirit_jax.models.llama import LlamaConfig

REPOSITORY = pathlib.Path(__file__).parents[1]
TOKENIZER = REPOSITORY / "tests/golden/tokenizers/small_expressive_userdef"


def write_released(folder: pathlib.Path, layers: int) -> int:
    """Write a released folder with random bfloat16 weights in shards, and return its bytes."""
    config = LlamaConfig(vocab_size=32768, num_hidden_layers=layers)
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    # Random bits with the exponents of weights, drawn once, because drawing them for each tensor takes minutes.
    noise = np.random.default_rng(0).integers(0x3C00, 0x3D00, 32768 * 4096, np.uint16).view(bfloat16)

    def read(shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        return lambda: noise[: int(np.prod(shape))].reshape(shape)

    tensors = {
        mapping.names[0]: LazyArray(mapping.shape, bfloat16, read(mapping.shape))
        for mapping in tensor_mappings(llama.rows(config), llama.shapes(config))
    }
    folder.mkdir(parents=True)
    hf_weights.save_weights(folder, tensors, hf_weights.default_shards(tensors))
    (folder / "config.json").write_text(json.dumps(llama.to_hf_config(config, bfloat16, 1, 2)))
    for path in TOKENIZER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return sum(nbytes(tensor) for tensor in tensors.values())


def write_run(converted: str, run: str) -> None:
    """Save a converted model as step 1 of a training run; called in a process of its own."""
    import jax

    from spirit_jax import checkpoint, config
    from spirit_jax.models.llama import abstract_params
    from spirit_jax.training.checkpoints import CheckpointConfig, RunCheckpoints
    from spirit_jax.training.faults import no_recent_steps
    from spirit_jax.training.state import TrainState

    model = config.from_dict(LlamaConfig, checkpoint.read_config(converted)["model"])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract_params(model))
    checkpoints = RunCheckpoints(run, CheckpointConfig())
    params = checkpoint.load_llm(converted, abstract)
    optimizer = {"count": jax.numpy.zeros((), int)}  # Orbax refuses an empty tree, and an export reads the model alone
    step = jax.numpy.ones((), int)
    state = TrainState(step=step, params=params, opt_state=optimizer, recent=no_recent_steps())
    checkpoints.save(state, {})
    checkpoints.close()
    shutil.copy(pathlib.Path(converted) / checkpoint.CONFIG, run)
    shutil.copytree(pathlib.Path(converted) / checkpoint.TOKENIZER, pathlib.Path(run) / checkpoint.TOKENIZER)


def measure(*arguments: str) -> tuple[float, float, float]:
    """Run one command and return its seconds, its seconds of CPU, and its peak of anonymous memory in GB."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    peak = 0
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                break
            found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max([peak, *found])
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - spent.ru_utime - spent.ru_stime
    return time.monotonic() - begin, cpu, peak * 1024 / 1e9


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="number of layers; 32 is the full model")
    parser.add_argument(
        "--directory", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()), help="directory for the files"
    )
    parser.add_argument("--step", action="store_true", help="export a training run's step too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        released, converted, back, run = (
            pathlib.Path(scratch) / name for name in ("released", "converted", "back", "run")
        )
        size = write_released(released, arguments.layers) / 1e9
        print(f"{arguments.layers} layers of Spirit LM 7B's width, bfloat16: {size:.2f} GB", flush=True)
        *_, start = measure("-c", "import spirit_jax.convert.verification.verify")
        print(f"{'command':8} {'s':>7} {'s/GB':>6} {'CPU s/GB':>9} {'memory GB':>10} {'over start GB':>14}", flush=True)

        def convert(name: str, command: str, source: pathlib.Path, target: pathlib.Path) -> None:
            options = ["--source", str(source), "--target", str(target)]
            seconds, cpu, memory = measure("-m", "spirit_jax.convert", command, *options)
            rates = f"{seconds:7.1f} {seconds / size:6.2f} {cpu / size:9.2f}"
            print(f"{name:8} {rates} {memory:10.2f} {memory - start:14.2f}", flush=True)

        def compare(exported: pathlib.Path) -> None:
            files = sorted(path for path in released.iterdir() if path.suffix == ".safetensors")
            same = all(filecmp.cmp(path, exported / path.name, shallow=False) for path in files)
            print(f"exported files equal the source byte for byte: {'yes' if same else 'NO'}", flush=True)
            shutil.rmtree(exported)

        name = "spiritlm_model/spirit-lm-expressive-7b"
        convert("import", "import", released, converted)
        convert("export", "export", converted, back)
        compare(back / name)
        if arguments.step:
            begin = time.monotonic()
            code = "import sys; from benchmarks.convert import write_run; write_run(*sys.argv[1:])"
            subprocess.run([sys.executable, "-c", code, str(converted), str(run)], check=True, cwd=REPOSITORY)
            print(f"saving the step: {time.monotonic() - begin:.1f} s", flush=True)
            convert("step", "export", run / "checkpoints/1", back.with_name("again"))
            compare(back.with_name("again") / name)


if __name__ == "__main__":
    main()
