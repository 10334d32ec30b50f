"""Memory and time of converting a language model: a synthetic Llama of Spirit LM's width, import, export and export of a run's step.

    python benchmarks/convert.py [--layers 4] [--directory /tmp] [--step]

With 32 layers it is the full 7 B (13.5 GB in bfloat16, three times on disk). Memory does not depend on the number of layers: what is
held at once is a block of one tensor. Each command runs in a process of its own; "memory" is the peak of its anonymous resident
pages, that is without the mapped pages of files, which the kernel takes back when it needs them; "start" is that peak for
an import of nothing but the libraries. `--step` also saves the model as a training run does, which takes its size in memory, and
exports that step.
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

import ml_dtypes
import numpy as np

from spirit_jax.convert.components import llama
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.files import LazyArray, nbytes
from spirit_jax.convert.table import slots
from spirit_jax.models.llama import LlamaConfig

REPOSITORY = pathlib.Path(__file__).parents[1]
TOOL = REPOSITORY / "tools/convert_torch_weights.py"
TOKENIZER = REPOSITORY / "tests/golden/tokenizers/small_expressive_userdef"


def write_released(folder: pathlib.Path, layers: int) -> int:
    """A released folder with random bfloat16 weights in shards; returns its bytes."""
    config = LlamaConfig(vocab_size=32768, num_hidden_layers=layers)
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    # Random bits of the exponents that weights have; drawn once, so that making the file takes no time to speak of.
    noise = np.random.default_rng(0).integers(0x3C00, 0x3D00, 32768 * 4096, np.uint16).view(bfloat16)

    def read(shape):
        return lambda: noise[: int(np.prod(shape))].reshape(shape)

    tensors = {
        slot.names[0]: LazyArray(slot.shape, bfloat16, read(slot.shape))
        for slot in slots(llama.rows(config), llama.shapes(config))
    }
    folder.mkdir(parents=True)
    hf_weights.save_weights(folder, tensors, hf_weights.default_shards(tensors))
    (folder / "config.json").write_text(json.dumps(llama.to_hf_config(config, bfloat16, 1, 2)))
    for path in TOKENIZER.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return sum(nbytes(tensor) for tensor in tensors.values())


def write_run(ours: str, run: str) -> None:
    """Saves a converted model as step 1 of a training run; called in a process of its own."""
    import jax

    from spirit_jax import checkpoint, config
    from spirit_jax.models.llama import abstract_params
    from spirit_jax.training.checkpoints import CheckpointConfig, RunCheckpoints
    from spirit_jax.training.step import TrainState

    model = config.from_dict(LlamaConfig, checkpoint.read_config(ours)["model"])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract_params(model))
    checkpoints = RunCheckpoints(run, CheckpointConfig())
    params = checkpoint.load_llm(ours, abstract)
    checkpoints.save(TrainState(step=jax.numpy.ones((), int), params=params, opt_state={}), {})
    checkpoints.close()
    shutil.copy(pathlib.Path(ours) / checkpoint.CONFIG, run)
    shutil.copytree(pathlib.Path(ours) / checkpoint.TOKENIZER, pathlib.Path(run) / checkpoint.TOKENIZER)


def measure(*arguments: str) -> tuple[float, float, float]:
    """(seconds, seconds of CPU, GB of anonymous memory at the peak) of one command."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4, help="32 is 7 B")
    parser.add_argument(
        "--directory", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()), help="for the files"
    )
    parser.add_argument("--step", action="store_true", help="export a training run's step too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        released, ours, back, run = (pathlib.Path(scratch) / name for name in ("released", "ours", "back", "run"))
        size = write_released(released, arguments.layers) / 1e9
        print(f"{arguments.layers} layers of Spirit LM 7B's width, bfloat16: {size:.2f} GB", flush=True)
        *_, start = measure("-c", "import spirit_jax.convert.verification.verify")
        print(f"{'command':8} {'s':>7} {'s/GB':>6} {'CPU s/GB':>9} {'memory GB':>10} {'over start GB':>14}", flush=True)

        def convert(name: str, command: str, source: pathlib.Path, target: pathlib.Path) -> None:
            seconds, cpu, memory = measure(str(TOOL), command, "--source", str(source), "--target", str(target))
            rates = f"{seconds:7.1f} {seconds / size:6.2f} {cpu / size:9.2f}"
            print(f"{name:8} {rates} {memory:10.2f} {memory - start:14.2f}", flush=True)

        def compare(exported: pathlib.Path) -> None:
            files = sorted(path for path in released.iterdir() if path.suffix == ".safetensors")
            same = all(filecmp.cmp(path, exported / path.name, shallow=False) for path in files)
            print(f"exported files equal the source byte for byte: {'yes' if same else 'NO'}", flush=True)
            shutil.rmtree(exported)

        name = "spiritlm_model/spirit-lm-expressive-7b"
        convert("import", "import", released, ours)
        convert("export", "export", ours, back)
        compare(back / name)
        if arguments.step:
            begin = time.monotonic()
            code = "import sys; from benchmarks.convert import write_run; write_run(*sys.argv[1:])"
            subprocess.run([sys.executable, "-c", code, str(ours), str(run)], check=True, cwd=REPOSITORY)
            print(f"saving the step: {time.monotonic() - begin:.1f} s", flush=True)
            convert("step", "export", run / "checkpoints/1", back.with_name("again"))
            compare(back.with_name("again") / name)


if __name__ == "__main__":
    main()
