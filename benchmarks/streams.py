"""How many real-time streams of speech a TPU host would carry, by the cost model. No TPU is needed, and none runs.

    python -m benchmarks.streams [--hosts v5e-8 v6e:1x1 v6e-8] [--slots 8 32 64] [--context 2048] [--quantize int8]
        [--prefill] [--json benchmarks/results/streams.json]

One decode step of the 7 B model is compiled for each host (`spirit_jax.inference.compile`, as `generate
--compile_topology` does), with the weights split over its chips and the cache at its longest. A stream is spoken in
real time if its tokens come at least as fast as `--tokens` a second. That is what Spirit LM Expressive needs: of 25
phonetic units a second about 15 are left without repetitions, and with pitch, style and text there are about 30 tokens.
`--prefill` also compiles the reading of a prompt of 512 tokens in every slot.

The time is a lower bound: reading of prompts, the vocoder and the work of the host come on top. With `--json`, rows of
hosts and slots that the file already has are replaced, and the others stay.
"""

import argparse
import dataclasses
import pathlib
from typing import Any

import jax

from benchmarks import report
from spirit_jax.core.constants import GIB
from spirit_jax.core.files import read_json
from spirit_jax.costmodel.report import Report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.inference.compile import PROMPT_TOKENS, compile_step, lower_steps, model_config
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "spirit_lm_expressive_7b.yaml"


def host_row(host: str, slots: int, options: argparse.Namespace) -> dict[str, Any]:
    """Compile the steps of a host for a number of slots, and return the row of the tables."""
    topology = Topology.parse(host)
    config = dataclasses.replace(model_config(CONFIG, "bfloat16"), max_position_embeddings=options.context)
    devices = topology.devices()
    mesh = make_mesh(MeshConfig(1, 1, len(devices)), devices, slots)
    new_tokens = options.context - PROMPT_TOKENS
    steps = lower_steps(config, mesh, slots=slots, new_tokens=new_tokens, quantize=options.quantize)
    row: dict[str, Any] = {"host": host, "weights": options.quantize or "bfloat16", "slots": slots}
    row |= {"context": options.context, "chips": topology.chips}
    reports: dict[str, Report] = {}
    for name in ("decode", "prefill") if options.prefill else ("decode",):
        try:
            reports[name] = compile_step(name, steps[name], topology, config, mesh, slots)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{host}, {slots} slots: {name}: {str(error).splitlines()[0]}\n", flush=True)
            return row | {"fits": False}
        print(f"{host}, {slots} slots: {name}\n{reports[name]}\n", flush=True)
    decode = reports["decode"]
    row |= {
        "fits": all(found.memory.total <= found.memory.limit for found in reports.values()),
        "step_seconds": decode.seconds,
        "memory_gib": decode.memory.total / GIB,
        "memory_limit_gib": decode.memory.limit / GIB,
        "tokens_per_second": 1 / decode.seconds,
    }
    if options.prefill:
        row |= {name: step_costs(found) for name, found in reports.items()}
        row["prefill"]["tokens"] = slots * PROMPT_TOKENS
    return row


def step_costs(found: Report) -> dict[str, float]:
    """The seconds of a step, of each resource in it, and of waiting for the links; and its memory in GiB."""
    return {
        "seconds": found.seconds,
        "waiting": found.waiting,
        **found.terms,
        "memory_gib": found.memory.total / GIB,
    }


def main() -> None:
    """Compile every host with every number of slots and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", default=["v5e-8", "v6e:1x1", "v6e-8"], help="topologies")
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 32, 64], help="streams that share a batch")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a stream, about a minute (default 2048)")
    parser.add_argument("--tokens", type=float, default=30.0, help="tokens a second of a stream (default 30)")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="form of the weights, default bfloat16")
    parser.add_argument("--prefill", action="store_true", help="also compile the reading of the prompts")
    report.add_option(parser)
    options = parser.parse_args()
    where = report.machine()
    rows = []
    if options.json is not None and options.json.exists():
        rows = read_json(options.json)["figures"]
    for host in options.hosts:
        for slots in options.slots:
            row = host_row(host, slots, options)
            same = ("host", "weights", "slots", "context")
            rows = [other for other in rows if any(other[name] != row[name] for name in same)] + [row]
            rows.sort(key=lambda row: (row["host"], row["weights"], row["slots"]))
            report.write(options.json, where, rows, options=[])
    for row in rows:
        name = f"{row['host']:8} {row['weights']:9} {row['slots']:4} slots"
        if not row["fits"]:
            print(f"{name}: does not fit")
            continue
        print(
            f"{name}: {1e3 * row['step_seconds']:6.1f} ms a step, {row['tokens_per_second']:6.1f} tokens/s a stream, "
            f"{row['memory_gib']:5.1f} of {row['memory_limit_gib']:.1f} GiB a chip; real time: "
            f"{'yes' if row['tokens_per_second'] >= options.tokens else 'no'}"
        )


if __name__ == "__main__":
    main()
