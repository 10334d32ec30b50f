"""Packing against exhaustive search, and the arrays of a row against a loop over its documents."""

import itertools

import numpy as np
import pytest

from spirit_jax.data.packing import Packer, choose_documents, empty_batch, fill_row


def test_choice_is_the_fullest_with_the_oldest_document():
    rng = np.random.default_rng(0)
    for _ in range(150):
        lengths = rng.integers(1, 60, rng.integers(1, 9)).tolist()
        capacity = int(rng.integers(lengths[0], 150))
        chosen = choose_documents(lengths, capacity)
        assert chosen[0] == 0
        assert chosen == sorted(set(chosen))
        total = sum(lengths[index] for index in chosen)
        others = range(1, len(lengths))
        sums = [
            lengths[0] + sum(lengths[index] for index in subset)
            for size in range(len(lengths))
            for subset in itertools.combinations(others, size)
        ]
        assert total == max(s for s in sums if s <= capacity)


def test_older_documents_are_preferred():
    assert choose_documents([3, 2, 2, 2, 2], 7) == [0, 1, 2]
    assert choose_documents([3, 5, 2, 1, 4], 7) == [0, 4]
    assert choose_documents([7, 1], 7) == [0]


def _documents(rng, count, longest, prefix):
    return [
        np.concatenate([prefix, rng.integers(10, 1000, rng.integers(1, longest - len(prefix) + 1))]).astype(np.int32)
        for _ in range(count)
    ]


@pytest.mark.parametrize("prefix", [[1], [1, 5], [1, 5, 6]])
def test_rows_equal_a_loop_over_their_documents(prefix):
    rng = np.random.default_rng(1)
    documents = _documents(rng, 9, 12, prefix)
    batch = empty_batch(3, 128)
    used = fill_row(batch, 1, documents, len(prefix))
    expected = {name: np.zeros(128, array.dtype) for name, array in batch.items()}
    slot = 0
    for segment, ids in enumerate(documents, 1):
        for position in range(len(ids) - 1):
            expected["inputs"][slot] = ids[position]
            expected["targets"][slot] = ids[position + 1]
            expected["segment_ids"][slot] = segment
            expected["positions"][slot] = position
            expected["loss_mask"][slot] = position + 1 >= len(prefix)  # the target is not one of the constant first ids
            slot += 1
    assert used == slot
    for name, array in batch.items():
        np.testing.assert_array_equal(array[1], expected[name], err_msg=name)
        assert not array[[0, 2]].any()


def test_every_document_comes_out_once_and_the_oldest_first():
    rng = np.random.default_rng(2)
    documents = _documents(rng, 800, 65, [1])
    packer, rows, added = Packer(64), [], 0
    while added < len(documents) or packer.waiting:
        while added < len(documents) and not packer.is_full:
            packer.add(documents[added], added)
            added += 1
        oldest = packer.waiting[0][0]
        rows.append(packer.take())
        assert rows[-1][0] is oldest
        assert sum(len(ids) - 1 for ids in rows[-1]) <= 64
    out = [ids for row in rows for ids in row]
    assert sorted(map(id, out)) == sorted(map(id, documents))


@pytest.mark.parametrize(
    ("least", "most", "filled"), [(40, 420, 0.999), (200, 2000, 0.995), (260, 2900, 0.97)], ids=str
)
def test_rows_of_realistic_lengths_are_filled(least, most, filled):
    """The lengths are those of speech of 2-16 s, and of text of 200-2000 and of up to 2900 tokens, in rows of 4096."""
    rng, packer, used = np.random.default_rng(3), Packer(4096), 0
    for _ in range(400):
        while not packer.is_full:
            packer.add(np.zeros(int(rng.integers(least, most)), np.int32), None)
            waiting = [len(ids) - 1 for ids, _ in packer.waiting]
            assert packer.is_full == (
                len(waiting) >= 32 and sum(waiting) >= 2 * 4096
            )  # so that few documents wait, however long a run is
        used += sum(len(ids) - 1 for ids in packer.take())
    assert used / (400 * 4096) >= filled
