"""The codebook's moving averages against NumPy, the replacement of dead codes, and the gradient that passes it."""

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax.models import codebook
from spirit_jax.models.vqvae import VQVAE, nearest_codes
from spirit_jax.models.vqvae_config import VQVAEConfig

DECAY = 0.9


def reference(counts, sums, latents, codes, decay):
    """The averages after a step by loops; `codes` of padding are left out by the caller."""
    counts, sums = decay * counts, decay * sums
    for latent, code in zip(latents, codes, strict=True):
        counts[code] += 1 - decay
        sums[code] += (1 - decay) * latent
    return counts, sums


def test_averages_equal_numpy_and_padding_does_not_count():
    rng = np.random.default_rng(0)
    latents, codes = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 4, 40)
    valid = np.arange(40) < 30
    latents[~valid] = np.nan  # as the latents of padding may be
    averages = codebook.Averages(counts_k=jnp.full(4, 9.0), sums_ke=jnp.asarray(rng.normal(size=(4, 3)), jnp.float32))
    expected = reference(*map(np.array, averages), latents[valid], codes[valid], DECAY)
    after, entries, dead = jax.jit(codebook.update, static_argnames="decay")(
        averages, latents, codes, valid, key=jax.random.key(0), decay=DECAY
    )
    assert dead == 0
    np.testing.assert_allclose(after.counts_k, expected[0], rtol=1e-6)
    np.testing.assert_allclose(after.sums_ke, expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(entries, expected[1] / expected[0][:, None], rtol=1e-5, atol=1e-6)


def test_dead_codes_become_different_latents_of_the_batch():
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(20, 2)).astype(np.float32)
    valid = np.arange(20) < 12
    averages = codebook.Averages(counts_k=jnp.array([50.0, 0.5, 1.05, 0.0]), sums_ke=jnp.ones((4, 2)))
    after, entries, dead = codebook.update(
        averages, latents, np.zeros(20, np.int32), valid, key=jax.random.key(3), decay=DECAY
    )
    assert dead == 3  # 1.05 falls below one
    replaced = np.asarray(entries)[1:]
    distances = np.abs(replaced[:, None] - latents[None]).max(-1)
    assert (distances.min(1) == 0).all()
    assert set(distances.argmin(1)) <= set(range(12))
    assert len(set(distances.argmin(1))) == 3
    np.testing.assert_array_equal(np.asarray(after.counts_k)[1:], 1.0)
    none = codebook.update(
        averages, latents, np.zeros(20, np.int32), ~valid & False, key=jax.random.key(3), decay=DECAY
    )
    assert none[2] == 0


def test_codes_that_are_used_stay_and_the_codebook_finds_clusters():
    rng = np.random.default_rng(2)
    centers = np.array([[0, 0], [5, 0], [0, 5], [5, 5]], np.float32)
    averages, entries = codebook.no_averages(4, 2), jnp.zeros((4, 2))
    update = jax.jit(codebook.update, static_argnames="decay")
    for step in range(60):
        latents = centers[rng.integers(0, 4, 64)] + rng.normal(0, 0.1, (64, 2)).astype(np.float32)
        codes = nearest_codes(latents[None], entries)[0]
        averages, entries, _ = update(
            averages, latents, codes, np.ones(64, bool), key=jax.random.key(step), decay=DECAY
        )
    nearest = np.abs(np.asarray(entries)[:, None] - centers[None]).max(-1)
    assert (nearest.min(0) < 0.2).all()


def test_the_gradient_passes_the_quantizer_unchanged_and_the_codebook_gets_none():
    model = VQVAE(VQVAEConfig(codes=8, embedding_size=4, width=4, stages=2, depth=1))
    f0 = jnp.asarray(np.random.default_rng(3).normal(size=(2, 16)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), f0, f0)["params"]

    def straight_through(params):
        return model.apply({"params": params}, f0, f0, method="straight_through")

    (z, codes, counts, made), (codes_there, made_there) = jax.jit(
        lambda params: (straight_through(params), model.apply({"params": params}, f0, f0))
    )(params)
    np.testing.assert_array_equal(codes, codes_there)
    np.testing.assert_allclose(made, made_there, atol=1e-6)
    assert (z.shape, counts.tolist()) == ((2, 4, 4), [4, 4])

    gradient = jax.jit(jax.grad(lambda params: jnp.square(straight_through(params)[3]).sum()))(params)
    assert not np.any(gradient["codebook"])

    def decoded(z):  # the decoder of these codes, moved by a shift that has the latents' gradient
        entries = jnp.take(params["codebook"], codes, axis=0)
        return jnp.square(
            model.apply({"params": params}, entries + z, counts, method=lambda m, x, n: m.decoder(x, n))
        ).sum()

    @jax.jit
    def pulled_back(params):
        of_latents = jax.grad(decoded)(jnp.zeros_like(z))
        _, pull_back = jax.vjp(lambda p: model.apply({"params": p}, f0, f0, method="latents")[0], params)
        return pull_back(of_latents)[0]

    through = pulled_back(params)
    for found, expected in zip(jax.tree.leaves(gradient["encoder"]), jax.tree.leaves(through["encoder"]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
