"""The loader: batches that depend on (config, seed, N) only, exact resumption, what comes out against what went in."""

import concurrent.futures
import dataclasses
import json
import logging

import numpy as np
import pytest

from spirit_jax.data.pipeline import DataConfig, Loader, SourceConfig, held_out_batches
from spirit_jax.data.records import RecordError, RecordSource, RecordWriter
from spirit_jax.data.sampling import Shuffle, record_rng
from spirit_jax.data.sequences import Sequencer
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden
from tests.support.synthetic import RECIPES, config, document, make_corpus, utterance

LENGTH, ROWS, SEED = 256, 8, 5
ARRAYS = ("inputs", "targets", "segment_ids", "positions", "loss_mask", "sources")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden("tokenizers/small_expressive_userdef"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    make_corpus(directory)
    return directory


def _take(loader, count):
    return [next(loader) for _ in range(count)]


def _equal(one, two):
    return len(one) == len(two) and all(
        np.array_equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in ARRAYS
    )


def _joined(hosts):
    """Global batches out of each host's."""
    return [
        {name: np.concatenate([batch[name] for batch in row]) for name in ARRAYS} for row in zip(*hosts, strict=True)
    ]


def _documents(batch):
    """(source, ids) of every document of a batch, by walking along its slots."""
    documents = []
    for row, source in enumerate(batch["sources"].tolist()):
        for segment in range(1, int(batch["segment_ids"][row].max()) + 1):
            (slots,) = np.nonzero(batch["segment_ids"][row] == segment)
            assert slots.tolist() == list(range(slots[0], slots[-1] + 1))
            assert batch["positions"][row, slots].tolist() == list(range(len(slots)))
            ids = [*batch["inputs"][row, slots].tolist(), int(batch["targets"][row, slots[-1]])]
            assert batch["targets"][row, slots].tolist() == ids[1:]
            documents.append((source, tuple(ids)))
    return documents


@pytest.fixture(scope="module")
def reference(corpus, vocabulary):
    """Twelve batches of one host without workers."""
    return _take(Loader(config(corpus), vocabulary, LENGTH, ROWS, SEED), 12)


def test_shapes_and_masks(reference, vocabulary):
    for batch in reference:
        assert sorted(batch) == sorted(ARRAYS)
        for name in ARRAYS[:4]:
            assert (batch[name].shape, batch[name].dtype) == ((ROWS, LENGTH), np.int32)
        assert (batch["loss_mask"].shape, batch["loss_mask"].dtype) == ((ROWS, LENGTH), np.bool_)
        assert (batch["sources"].shape, batch["sources"].dtype) == ((ROWS,), np.int32)
        padding = batch["segment_ids"] == 0
        assert not batch["inputs"][padding].any()
        assert not batch["loss_mask"][padding].any()
        # off at the dummy piece after <s> of each document, on everywhere else
        np.testing.assert_array_equal(batch["loss_mask"], ~padding & (batch["positions"] > 0))
        for _, ids in _documents(batch):
            assert list(ids[:2]) == vocabulary.prefix
            assert ids[-1] == vocabulary.eos_id
            assert vocabulary.eos_id not in ids[:-1]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_share_the_same_batches(reference, corpus, vocabulary, hosts):
    loaders = [Loader(config(corpus), vocabulary, LENGTH, ROWS, SEED, host, hosts) for host in range(hosts)]
    assert _equal(_joined([_take(loader, 12) for loader in loaders]), reference)


def test_workers_make_the_same_batches_and_resume(corpus, vocabulary):
    """Two workers that share three streams unevenly, then one worker from their state, then none from its."""

    def run(workers, count, state=None, host=0, hosts=2):
        with Loader(
            config(corpus, workers=workers, prefetch=3), vocabulary, LENGTH, 6, SEED, host, hosts, state
        ) as loader:
            return _take(loader, count), json.loads(json.dumps(loader.state()))

    whole, _ = run(0, 9, host=0, hosts=1)
    upper_half = [{name: batch[name][:3] for name in ARRAYS} for batch in whole]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # starting a process takes seconds
        first = pool.submit(run, 2, 4)
        alone = pool.submit(run, 1, 4, None, 1)
        (first, state), (alone, lower) = first.result(), alone.result()
    assert _equal(_joined([first, alone]), whole[:4])
    # the state is that of the four batches taken, though the workers had prepared more
    second, state = run(1, 2, state)
    assert _equal(second, upper_half[4:6])
    assert _equal(run(0, 3, state)[0], upper_half[6:])
    assert _equal(run(0, 5, state | lower, host=1)[0], [{n: b[n][3:] for n in ARRAYS} for b in whole[4:]])


def test_resumed_at_every_batch(reference, corpus, vocabulary):
    loader = Loader(config(corpus), vocabulary, LENGTH, ROWS, SEED)
    for number in range(12):
        state = json.loads(json.dumps(loader.state()))
        assert max(len(json.dumps(stream)) for stream in state.values()) < 4000
        resumed = Loader(config(corpus), vocabulary, LENGTH, ROWS, SEED, state=state)
        assert resumed.state() == state
        assert _equal(_take(resumed, min(2, 12 - number)), reference[number : number + 2])
        next(loader)


def test_streams_fewer_than_rows_and_another_batch_size(corpus, vocabulary):
    """Two streams of a batch of 8 give the rows of two streams of a batch of 4, twice as many at a time."""
    eight = _take(Loader(config(corpus, streams=2), vocabulary, LENGTH, 8, SEED), 3)
    loader = Loader(config(corpus, streams=2), vocabulary, LENGTH, 4, SEED)
    four = _take(loader, 6)
    for number, batch in enumerate(eight):
        pair = [four[2 * number], four[2 * number + 1]]
        for name in ARRAYS:
            rows = [half[name][rows] for rows in (slice(0, 2), slice(2, 4)) for half in pair]
            np.testing.assert_array_equal(batch[name], np.concatenate(rows))
    state = loader.state()
    hosts = [Loader(config(corpus, streams=2), vocabulary, LENGTH, 8, SEED, host, 2, state) for host in range(2)]
    following = _joined([[next(host)] for host in hosts])[0]
    assert _equal([following], [next(Loader(config(corpus, streams=2), vocabulary, LENGTH, 8, SEED, state=state))])


def test_other_seeds_give_other_batches(reference, corpus, vocabulary):
    other = _take(Loader(config(corpus), vocabulary, LENGTH, ROWS, SEED + 1), 12)
    assert not any(np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(reference, other, strict=True))


def test_every_document_of_the_draws_comes_out_exactly_once(corpus, vocabulary):
    """Against the draws themselves: stream v's k-th is position 4 k + v of the shuffled source, over several epochs."""
    loader = Loader(config(corpus, streams=4), vocabulary, LENGTH, ROWS, SEED)
    found = [document for batch in _take(loader, 60) for document in _documents(batch)]
    expected, waiting, epochs = [], 0, set()
    for index, (name, recipe) in enumerate(RECIPES.items()):
        records = RecordSource(corpus / name, "train")
        order = Shuffle(len(records), SEED, name)
        make = Sequencer(vocabulary, recipe, LENGTH + 1)
        for stream in range(4):
            state = loader.state()[str(stream)]["sources"][name]
            for draw in range(state["next"]):
                record, epoch = order[draw * 4 + stream]
                epochs.add(epoch)
                for part, ids in enumerate(make(records[record], record_rng(SEED, name, record, epoch))):
                    if [draw, part] in state["waiting"]:
                        waiting += 1
                    else:
                        expected.append((index, tuple(ids.tolist())))
    assert sorted(found) == sorted(expected)
    assert waiting == sum(len(d["waiting"]) for s in loader.state().values() for d in s["sources"].values())
    assert len(epochs) >= 3


def test_weights_count_tokens(corpus, vocabulary):
    weights = {"speech": 1.0, "aligned": 2.0, "prose": 0.5}
    settings = config(corpus)
    sources = {name: dataclasses.replace(source, weight=weights[name]) for name, source in settings.sources.items()}
    loader = Loader(dataclasses.replace(settings, sources=sources), vocabulary, LENGTH, ROWS, SEED)
    rows, tokens = np.zeros(3), np.zeros(3)
    for batch in _take(loader, 100):
        rows += np.bincount(batch["sources"], minlength=3)
        np.add.at(tokens, batch["sources"], (batch["segment_ids"] > 0).sum(1))
    shares = np.array(list(weights.values())) / 3.5
    assert (np.abs(rows - 800 * shares) <= 2 + np.log2(800) / 2).all()  # the mixture's own bound
    # documents here take up to half a row: every source fills its rows to 93 % or more, which bounds the shares of tokens
    assert (tokens / (rows * LENGTH) > 0.93).all()
    assert (np.abs(tokens / tokens.sum() - shares) < 0.03).all()


def test_sources_of_no_weight_are_left_out(corpus, vocabulary):
    settings = config(corpus)
    sources = dict(settings.sources)
    sources["aligned"] = dataclasses.replace(sources["aligned"], fraction=0)
    sources["prose"] = dataclasses.replace(sources["prose"], weight=0)
    loader = Loader(dataclasses.replace(settings, sources=sources), vocabulary, LENGTH, ROWS, SEED)
    assert loader.source_names == ["speech"]
    assert not any(batch["sources"].any() for batch in _take(loader, 3))
    sources["speech"] = dataclasses.replace(sources["speech"], weight=0)
    with pytest.raises(ValueError, match="no source with a weight and a fraction above 0"):
        Loader(dataclasses.replace(settings, sources=sources), vocabulary, LENGTH, ROWS, SEED)


@pytest.fixture
def bad_corpus(tmp_path):
    """Records 3 and 11 of 20 cannot be used; record 7's bytes in the file are changed."""
    rng = np.random.default_rng(0)
    with RecordWriter(tmp_path / "aligned", "train") as writer:
        for number in range(20):
            record = utterance(rng, number, 12)
            if number == 3:
                record = dataclasses.replace(record, spans_ms=record.spans_ms + 10_000)
            if number == 11:
                record = dataclasses.replace(record, text="")
            writer.write_bytes(record.to_bytes())
    file = tmp_path / "aligned" / "train-00000-of-00001.array_record"
    data = bytearray(file.read_bytes())
    (used,) = np.nonzero(np.frombuffer(data, np.uint8))  # records, in order, then padding and the index
    data[used[len(used) * 7 // 20]] ^= 64
    file.write_bytes(data)
    return tmp_path / "aligned"


def _aligned(path, **settings):
    return DataConfig({"aligned": SourceConfig(str(path), "interleaved", held_out_split="train")}, **settings)


def test_bad_records_are_skipped_and_counted(bad_corpus, vocabulary, caplog):
    loader = Loader(_aligned(bad_corpus, on_bad_record="skip", streams=1), vocabulary, LENGTH, 2, SEED)
    with caplog.at_level(logging.WARNING):
        batches = _take(loader, 60)
    state = loader.state()["0"]["sources"]["aligned"]
    order = Shuffle(20, SEED, "aligned")
    bad = [draw for draw in range(state["next"]) if order[draw][0] in (3, 7, 11)]
    assert loader.skipped == {"aligned": len(bad)}
    assert len(bad) > 20
    assert 3 <= len(caplog.records) <= 20  # named, but not for ever
    for message in (
        "'utterance-3': word 0",
        "'utterance-11': empty transcript",
        "array_record: record 7 cannot be read",
    ):
        assert message in caplog.text
    # resumed, the count goes on, and nothing bad got through
    resumed = Loader(
        _aligned(bad_corpus, on_bad_record="skip", streams=1), vocabulary, LENGTH, 2, SEED, state=loader.state()
    )
    assert resumed.skipped == loader.skipped
    next(resumed)
    assert resumed.skipped["aligned"] >= loader.skipped["aligned"]
    assert all(_documents(batch) for batch in batches)


def test_bad_records_stop_the_run_by_default(bad_corpus, vocabulary):
    loader = Loader(_aligned(bad_corpus), vocabulary, LENGTH, 2, SEED)
    with pytest.raises(RecordError, match="source 'aligned': .*(utterance-3|utterance-11|record 7 cannot)"):
        _take(loader, 40)
    batches = held_out_batches(_aligned(bad_corpus), vocabulary, LENGTH, 2, "aligned")
    with pytest.raises(RecordError, match="source 'aligned': record 'utterance-3'"):
        list(batches)
    skipping = held_out_batches(_aligned(bad_corpus, on_bad_record="skip"), vocabulary, LENGTH, 2, "aligned")
    assert sum(len(_documents(batch)) for batch in skipping) == 17


def test_a_truncated_file_is_an_error_or_skipped_and_counted(tmp_path, vocabulary, caplog):
    make_corpus(tmp_path)
    file = tmp_path / "speech" / "train-00001-of-00003.array_record"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RecordError, match="source 'speech': .*train-00001-of-00003.*truncated"):
        Loader(config(tmp_path), vocabulary, LENGTH, 2, SEED)
    with caplog.at_level(logging.WARNING):
        loader = Loader(config(tmp_path, on_bad_record="skip", streams=1), vocabulary, LENGTH, 2, SEED)
    assert "all its records will be skipped: source 'speech': " in caplog.text
    _take(loader, 20)
    order = Shuffle(40, SEED, "speech")
    drawn = [order[draw][0] for draw in range(loader.state()["0"]["sources"]["speech"]["next"])]
    # 40 records in three files of 14, 13 and 13
    assert loader.skipped == {"speech": sum(14 <= record < 27 for record in drawn), "aligned": 0, "prose": 0}
    assert loader.skipped["speech"] > 10


def test_nothing_usable_is_an_error_and_not_an_endless_loop(tmp_path, vocabulary):
    with RecordWriter(tmp_path, "train") as writer:
        for number in range(5):
            writer.write(document(np.random.default_rng(number), number, 20))
    loader = Loader(_aligned(tmp_path, on_bad_record="skip"), vocabulary, LENGTH, 2, SEED)
    with pytest.raises(RecordError, match="1000 unusable records in a row, .*needs speech units"):
        next(loader)


def test_errors_of_a_worker_arrive(bad_corpus, vocabulary):
    loader = Loader(_aligned(bad_corpus, workers=1), vocabulary, LENGTH, 2, SEED)
    with loader, pytest.raises(RecordError, match="source 'aligned': "):
        _take(loader, 40)


def test_held_out_batches_are_all_of_the_split_once(corpus, vocabulary):
    settings = config(corpus)
    for index, (name, recipe) in enumerate(RECIPES.items()):
        batches = list(held_out_batches(settings, vocabulary, LENGTH, 4, name))
        assert len(batches) > 1
        assert _equal(batches, list(held_out_batches(settings, vocabulary, LENGTH, 4, name)))
        records, make = RecordSource(corpus / name, "test"), Sequencer(vocabulary, recipe, LENGTH + 1)
        expected = [
            (index, tuple(ids.tolist()))
            for record in range(len(records))
            for ids in make(records[record], record_rng(0, name, record, 0))
        ]
        found = [document for batch in batches for document in _documents(batch)]
        assert sorted(found) == sorted(expected)
        assert all(batch["inputs"].shape == (4, LENGTH) for batch in batches)
        used = np.concatenate([batch["segment_ids"].any(1) for batch in batches])
        assert used.tolist() == sorted(
            used.tolist(), reverse=True
        )  # only the last batch has rows of padding, at its end
        hosts = [list(held_out_batches(settings, vocabulary, LENGTH, 4, name, host, 2)) for host in range(2)]
        assert _equal(_joined(hosts), batches)


def test_settings_that_make_no_sense(corpus, vocabulary, tmp_path):
    for settings, message in (
        ({"recipe": "sing"}, "recipe 'sing' is none of text, speech, interleaved"),
        ({"weight": -1.0}, "weight must be 0 or more, found -1.0"),
        ({"weight": float("nan")}, "weight must be 0 or more"),
        ({"fraction": 1.5}, "fraction must lie in 0..1, found 1.5"),
        ({"text_words": (0, 4)}, "text_words must be a range of at least one word, found 0..4"),
        ({"speech_words": (9, 4)}, "speech_words must be a range of at least one word, found 9..4"),
    ):
        with pytest.raises(ValueError, match=message):
            SourceConfig("somewhere", **settings)
    for settings, message in (
        ({"workers": -1}, "workers must be at least 0"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
        ({"streams": 0}, "streams must be at least 1"),
        ({"on_bad_record": "ignore"}, "on_bad_record must be 'error' or 'skip'"),
    ):
        with pytest.raises(ValueError, match=message):
            DataConfig(**settings)
    for settings, arguments, message in (
        ({"streams": 3}, (LENGTH, 8, 0), "3 streams do not divide the global batch of 8 rows"),
        ({}, (LENGTH, 8, 0, 0, 3), "3 hosts do not divide the 8 streams"),
        ({}, (LENGTH, 8, 0, 2, 2), "host 2 of 2"),
        ({}, (8, 8, 0), "sequence length of 8 is too short"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(config(corpus, **settings), vocabulary, *arguments)
    with pytest.raises(RecordError, match="source 'speech': .*metadata.json: not found"):
        Loader(config(tmp_path), vocabulary, LENGTH, 8, 0)
    with pytest.raises(ValueError, match="source 'other' has no held_out_split"):
        next(held_out_batches(config(corpus), vocabulary, LENGTH, 4, "other"))


def test_states_that_do_not_fit(corpus, vocabulary, tmp_path):
    loader = Loader(config(corpus), vocabulary, LENGTH, ROWS, SEED)
    next(loader)
    state = loader.state()
    one_host = {number: state[number] for number in ("0", "1", "2", "3")}
    fewer = {name: source for name, source in config(corpus).sources.items() if name != "prose"}
    make_corpus(tmp_path, records=41)
    for settings, length, rows, saved, message in (
        (config(corpus), LENGTH, ROWS, one_host, "has 4 streams, stream 4 is not among them"),
        (config(corpus), LENGTH, 4, state, "is of {'streams': 8, 'sequence_length': 256}, this run has {'streams': 4"),
        (config(corpus), 128, ROWS, state, "this run has {'streams': 8, 'sequence_length': 128}"),
        (DataConfig(fewer), LENGTH, ROWS, state, "this run has \\['aligned', 'speech'\\]"),
        (config(tmp_path), LENGTH, ROWS, state, "does not hold the records that the saved data state was made with"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(settings, vocabulary, length, rows, SEED, state=saved)
