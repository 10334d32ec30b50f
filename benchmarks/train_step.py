"""Compares the training step with that of Hugging Face's Llama in PyTorch on the same machine.

    python -m benchmarks.train_step [--rounds 7] [--batch 4] [--length 1024] [--hidden 512] [--layers 6] [--vocab 32768]
        [--json FILE]

One process builds the same float32 Llama twice (about 50 M parameters by default) and runs steps of both in turn:
forward, loss, backward, clipping by global norm, AdamW. Each round also times one large matrix product of each library;
the faster of the two medians is the machine's peak. The benchmark prints the tokens/s of both, the share of the peak
that the step's useful operations reach (`flops_per_token` counts causal attention once and recomputation not at all),
and the median ratio to PyTorch. Only the ratio can be compared between machines and runs.

Profiling each operation on two cores with AVX-512 (November 2026, jax 0.10.2) found these causes of slow steps:
- plain attention and derived weight gradients, in which XLA transposes the scores and the gradients element by element;
- attention over all heads at once, whose scores do not fit in a cache, unlike those of one head;
- the gradient of the head with the transposition folded into the matrix product.
What remains is attention, which is still slower than PyTorch's, and fresh pages for large temporaries, which cost both.
"""

import argparse
import functools
import os
import platform
import statistics
import time
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers

from benchmarks import report
from benchmarks.hugging_face import random_llama
from spirit_jax.models import llama
from spirit_jax.models.losses import next_token_losses

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0

Step = Callable[[], float]
"""Trains one step on random tokens and returns the loss."""


def jax_step(config: llama.LlamaConfig, batch: int, length: int) -> Step:
    """The training step of this package."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(LEARNING_RATE, b1=BETAS[0], b2=BETAS[1], eps=EPSILON, weight_decay=WEIGHT_DECAY),
    )
    model = llama.Llama(config)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, tokens):
        def loss(params):
            hidden, _ = model.apply({"params": params}, tokens[:, :-1])
            weights = jnp.full((batch, length), 1 / (batch * length))
            return next_token_losses(hidden, llama.head_weight(config, params), tokens[:, 1:], weights).loss

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.jit(functools.partial(llama.init_params, config))(jax.random.key(0))
    training = [params, jax.jit(optimizer.init)(params)]
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (batch, length + 1), dtype=np.int32))

    def run() -> float:
        training[0], training[1], value = step(*training, tokens)
        return float(value)

    return run


def torch_step(config: llama.LlamaConfig, batch: int, length: int) -> Step:
    """The same step in PyTorch: fused AdamW and scaled_dot_product_attention, on a GPU if PyTorch finds one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = random_llama(config, config.initializer_range)
    model = typing.cast(torch.nn.Module, network).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, BETAS, EPSILON, weight_decay=WEIGHT_DECAY, fused=True
    )
    tokens = torch.tensor(
        np.random.default_rng(0).integers(0, config.vocab_size, (batch, length + 1), dtype=np.int64), device=device
    )

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return run


def matrix_products(size: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """One large product in JAX and one in PyTorch."""
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    product = jax.jit(jnp.matmul).lower(a, b).compile()
    jax_inputs = jnp.asarray(a), jnp.asarray(b)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_inputs = torch.tensor(a, device=device), torch.tensor(b, device=device)
    return lambda: product(*jax_inputs).block_until_ready(), lambda: torch.matmul(*torch_inputs)[0, 0].item()


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds that one call takes, and its result."""
    time.sleep(0.3)  # OpenMP's threads spin for a fifth of a second after the work of the other library.
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after one to warm up (default 7)")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step (default 4)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row (default 1024)")
    parser.add_argument(
        "--hidden", type=int, default=512, help="width; the feed-forward is 2.75 times as wide (default 512)"
    )
    parser.add_argument("--layers", type=int, default=6, help="layers (default 6)")
    parser.add_argument("--vocab", type=int, default=32768, help="vocabulary (default 32768, Spirit LM Expressive's)")
    parser.add_argument("--scan", action="store_true", help="scan over the layers instead of unrolling them")
    report.add_option(parser)
    options = parser.parse_args()
    where = report.machine()

    config = llama.LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        max_position_embeddings=options.length,
        scan_layers=options.scan,
    )
    tokens = options.batch * options.length
    flops = llama.flops_per_token(config, options.length) * tokens
    print(
        f"{llama.parameter_count(config) / 1e6:.1f} M parameters, {options.batch} x {options.length} tokens, float32, "
        f"{flops / 1e12:.2f} TFLOP a step; {jax.devices()[0].device_kind} x {jax.device_count()}, "
        f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}, "
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    )
    jax_run, torch_run = (make(config, options.batch, options.length) for make in (jax_step, torch_step))
    size = 2048
    jax_product, torch_product = matrix_products(size)
    rounds = []
    for index in range(options.rounds + 1):
        product_seconds = [timed(product)[0] for product in (jax_product, torch_product)]
        (jax_seconds, jax_loss), (torch_seconds, torch_loss) = timed(jax_run), timed(torch_run)
        note = "  (warm-up: compilation)" if index == 0 else ""
        print(
            f"round {index}: jax {tokens / jax_seconds:7.0f} tok/s, torch {tokens / torch_seconds:7.0f} tok/s, "
            f"ratio {torch_seconds / jax_seconds:.2f}, loss {jax_loss:.3f} and {torch_loss:.3f}{note}",
            flush=True,
        )
        if index:
            rounds.append((*product_seconds, jax_seconds, torch_seconds))
    jax_peak, torch_peak = (2 * size**3 / statistics.median(row[column] for row in rounds) for column in (0, 1))
    peak = max(jax_peak, torch_peak)
    print(f"matmul peak {peak / 1e9:.0f} GFLOP/s (jax {jax_peak / 1e9:.0f}, torch {torch_peak / 1e9:.0f})")
    for name, column in (("jax", 2), ("torch", 3)):
        seconds = statistics.median(row[column] for row in rounds)
        print(f"{name:<5} {tokens / seconds:8.0f} tok/s, {flops / seconds / peak:4.0%} of the peak")
    ratios = [row[3] / row[2] for row in rounds]
    ratio = statistics.median(ratios)
    print(f"median ratio jax / torch {ratio:.2f} over {len(rounds)} rounds")
    figures = {
        "parameters": llama.parameter_count(config),
        "tokens_per_second": {
            name: tokens / statistics.median(row[column] for row in rounds)
            for name, column in (("ours", 2), ("torch", 3))
        },
        "flops_per_second_of_a_product": peak,
        "ratio": ratio,
        "ratios": ratios,
    }
    report.write(options.json, where, figures)


if __name__ == "__main__":
    main()
