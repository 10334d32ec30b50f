"""python benchmarks/train_step.py: our training step against Hugging Face's Llama in torch, on the same machine.

One process builds the same Llama twice (about 50 M parameters by default), float32, and steps both in turn: forward,
loss, backward, clipping by global norm, AdamW. Each round also times one large matrix product of each library; the
better of the two medians is the machine's peak. Printed: tokens/s of both, the share of that peak which the step's
useful operations reach (`flops_per_token`: causal attention counted once, recomputation not at all), and the median
over rounds of ours / torch. Only the ratio carries over between machines and moments.

What made it slow on two cores with AVX-512, found by profiling each operation (November 2026, jax 0.10.2):
- plain attention and weight gradients as derived: XLA transposed the scores and the gradients, element by element;
- attention over all heads at once, whose scores do not fit a cache, where those of one head do;
- the head's gradient with the transposition folded into the product.
What is left: attention, still slower than torch's, and fresh pages for large temporaries, which both pay for.
"""

import argparse
import functools
import os
import platform
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))
sys.modules.setdefault("torchaudio", None)  # transformers imports it when there; a build for another torch breaks that
import transformers  # noqa: E402

from spirit_jax.models.llama import Llama, LlamaConfig, flops_per_token, head_weight, init_params, parameter_count  # noqa: E402
from spirit_jax.models.losses import next_token_losses  # noqa: E402

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0


def our_step(config: LlamaConfig, batch: int, length: int):
    """A function of no arguments that trains one step on random tokens and returns the loss."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(LEARNING_RATE, *BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY),
    )
    model = Llama(config)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, tokens):
        def loss(params):
            hidden, _ = model.apply({"params": params}, tokens[:, :-1])
            weights = jnp.full((batch, length), 1 / (batch * length))
            return next_token_losses(hidden, head_weight(config, params), tokens[:, 1:], weights).loss

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    params = jax.jit(functools.partial(init_params, config))(jax.random.key(0))
    training = [params, jax.jit(optimizer.init)(params)]
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, config.vocab_size, (batch, length + 1), dtype=np.int32))

    def run() -> float:
        training[0], training[1], value = step(*training, tokens)
        return float(value)

    return run


def torch_step(config: LlamaConfig, batch: int, length: int):
    """The same in torch: fused AdamW and scaled_dot_product_attention, on a GPU if torch sees one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
    )
    same += ("num_key_value_heads", "initializer_range", "max_position_embeddings", "tie_word_embeddings")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{name: getattr(config, name) for name in same}, attn_implementation="sdpa")
    ).to(device)
    model.train()
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


def matmuls(size: int):
    """A large product in jax and one in torch, as functions of no arguments, and its operations."""
    a, b = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    ours = jax.jit(jnp.matmul).lower(a, b).compile()
    ours_args = jnp.asarray(a), jnp.asarray(b)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_args = torch.tensor(a, device=device), torch.tensor(b, device=device)
    return lambda: ours(*ours_args).block_until_ready(), lambda: torch.matmul(*torch_args)[0, 0].item(), 2 * size**3


def seconds(function) -> tuple[float, float]:
    """Wall time of one call, and what it returned."""
    time.sleep(0.3)  # OpenMP's threads go on spinning for a fifth of a second after the other side's work
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds, after one to warm up (default 7)")
    parser.add_argument("--batch", type=int, default=4, help="rows a step (default 4)")
    parser.add_argument("--length", type=int, default=1024, help="tokens a row (default 1024)")
    parser.add_argument(
        "--hidden", type=int, default=512, help="width; the feed-forward is 2.75 times it (default 512)"
    )
    parser.add_argument("--layers", type=int, default=6, help="layers (default 6)")
    parser.add_argument("--vocab", type=int, default=32768, help="vocabulary (default 32768, Spirit LM Expressive's)")
    parser.add_argument("--scan", action="store_true", help="scan over the layers instead of unrolling them")
    options = parser.parse_args()

    config = LlamaConfig(
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
    flops = flops_per_token(config, options.length) * tokens
    print(
        f"{parameter_count(config) / 1e6:.1f} M parameters, {options.batch} x {options.length} tokens, float32, "
        f"{flops / 1e12:.2f} TFLOP a step; {jax.devices()[0].device_kind} x {jax.device_count()}, "
        f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}, "
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    )
    ours, theirs = our_step(config, options.batch, options.length), torch_step(config, options.batch, options.length)
    our_matmul, their_matmul, matmul_flops = matmuls(2048)
    rows = []
    for index in range(options.rounds + 1):
        times = [seconds(f) for f in (our_matmul, their_matmul, ours, theirs)]
        (a, _), (b, _), (c, our_loss), (d, their_loss) = times
        note = "  (warm-up: compilation)" if index == 0 else ""
        print(
            f"round {index}: ours {tokens / c:7.0f} tok/s, torch {tokens / d:7.0f} tok/s, ratio {d / c:.2f}, "
            f"loss {our_loss:.3f} and {their_loss:.3f}{note}",
            flush=True,
        )
        if index:
            rows.append((a, b, c, d))
    a, b, c, d = (statistics.median(column) for column in zip(*rows, strict=True))
    peak = matmul_flops / min(a, b)
    print(
        f"matmul peak {peak / 1e9:.0f} GFLOP/s (jax {matmul_flops / a / 1e9:.0f}, torch {matmul_flops / b / 1e9:.0f})"
    )
    print(f"ours  {tokens / c:8.0f} tok/s, {flops / c / peak:4.0%} of the peak")
    print(f"torch {tokens / d:8.0f} tok/s, {flops / d / peak:4.0%} of the peak")
    print(f"median ratio ours / torch {statistics.median(row[3] / row[2] for row in rows):.2f} over {len(rows)} rounds")


if __name__ == "__main__":
    main()
