"""Training and held-out batches: a function of (config, seed, N), exact resumption, no document lost or repeated."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.held_out import held_out_batches
from spirit_jax.data.loader import Loader
from spirit_jax.data.records import RecordSource, RecordWriter
from spirit_jax.data.sampling import Shuffle, record_rng
from spirit_jax.data.sequences import Sequencer
from spirit_jax.data.unit_record import RecordError
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden
from tests.support.synthetic import RECIPES, make_records, mixture_config, speech_record, text_record

LENGTH, ROWS, SEED = 256, 8, 5
ARRAYS = ("inputs", "targets", "segment_ids", "positions", "loss_mask", "sources")


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.load(golden("tokenizers/small_expressive_userdef"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    make_records(directory)
    return directory


def _take(loader, count):
    return [next(loader) for _ in range(count)]


def _equal(one, two):
    return len(one) == len(two) and all(
        np.array_equal(a[name], b[name]) for a, b in zip(one, two, strict=True) for name in ARRAYS
    )


def _joined(hosts):
    """Global batches made of the batches of each host."""
    return [
        {name: np.concatenate([batch[name] for batch in row]) for name in ARRAYS} for row in zip(*hosts, strict=True)
    ]


def _documents(batch):
    """(source, ids) of every document of a batch, read from its slots."""
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
    return _take(Loader(mixture_config(corpus), vocabulary, LENGTH, ROWS, SEED), 12)


def test_batches_have_their_shapes_and_masks(reference, vocabulary):
    for batch in reference:
        assert sorted(batch) == sorted(ARRAYS)
        for name in ARRAYS[:4]:
            assert (batch[name].shape, batch[name].dtype) == ((ROWS, LENGTH), np.int32)
        assert (batch["loss_mask"].shape, batch["loss_mask"].dtype) == ((ROWS, LENGTH), np.bool_)
        assert (batch["sources"].shape, batch["sources"].dtype) == ((ROWS,), np.int32)
        padding = batch["segment_ids"] == 0
        assert not batch["inputs"][padding].any()
        assert not batch["loss_mask"][padding].any()
        # the mask is off where the target is the dummy piece after <s>, and on elsewhere
        np.testing.assert_array_equal(batch["loss_mask"], ~padding & (batch["positions"] > 0))
        for _, ids in _documents(batch):
            assert list(ids[:2]) == vocabulary.prefix
            assert ids[-1] == vocabulary.eos_id
            assert vocabulary.eos_id not in ids[:-1]


@pytest.mark.parametrize("hosts", [2, 8])
def test_hosts_share_the_same_batches(reference, corpus, vocabulary, hosts):
    loaders = [Loader(mixture_config(corpus), vocabulary, LENGTH, ROWS, SEED, host, hosts) for host in range(hosts)]
    assert _equal(_joined([_take(loader, 6) for loader in loaders]), reference[:6])


def test_workers_make_the_same_batches_and_resume(corpus, vocabulary):
    """Two workers share three streams unevenly beside a host without workers; one worker continues from their state,
    and no worker from its state."""

    def run(workers, count, state=None, host=0, hosts=2):
        with Loader(
            mixture_config(corpus, workers=workers, prefetch=3), vocabulary, LENGTH, 6, SEED, host, hosts, state
        ) as loader:
            return _take(loader, count), json.loads(json.dumps(loader.state()))

    whole, _ = run(0, 9, host=0, hosts=1)
    upper_half = [{name: batch[name][:3] for name in ARRAYS} for batch in whole]
    (first, state), (alone, lower) = run(2, 4), run(0, 4, host=1)
    assert _equal(_joined([first, alone]), whole[:4])
    # the state belongs to the four batches taken, although the workers have prepared more
    second, state = run(1, 2, state)
    assert _equal(second, upper_half[4:6])
    assert _equal(run(0, 3, state)[0], upper_half[6:])
    assert _equal(run(0, 5, state | lower, host=1)[0], [{n: b[n][3:] for n in ARRAYS} for b in whole[4:]])


def test_run_resumes_at_every_batch(reference, corpus, vocabulary):
    loader = Loader(mixture_config(corpus), vocabulary, LENGTH, ROWS, SEED)
    for number in range(6):
        state = json.loads(json.dumps(loader.state()))
        assert max(len(json.dumps(stream)) for stream in state.values()) < 4000
        resumed = Loader(mixture_config(corpus), vocabulary, LENGTH, ROWS, SEED, state=state)
        assert resumed.state() == state
        assert _equal(_take(resumed, 2), reference[number : number + 2])
        next(loader)


def test_fewer_streams_than_rows_and_another_batch_size_keep_the_rows(corpus, vocabulary):
    """Two streams of a batch of 8 give the rows of two streams of a batch of 4, twice as many at a time."""
    eight = _take(Loader(mixture_config(corpus, streams=2), vocabulary, LENGTH, 8, SEED), 3)
    loader = Loader(mixture_config(corpus, streams=2), vocabulary, LENGTH, 4, SEED)
    four = _take(loader, 6)
    for number, batch in enumerate(eight):
        pair = [four[2 * number], four[2 * number + 1]]
        for name in ARRAYS:
            rows = [half[name][rows] for rows in (slice(0, 2), slice(2, 4)) for half in pair]
            np.testing.assert_array_equal(batch[name], np.concatenate(rows))
    state = loader.state()
    hosts = [
        Loader(mixture_config(corpus, streams=2), vocabulary, LENGTH, 8, SEED, host, 2, state) for host in range(2)
    ]
    following = _joined([[next(host)] for host in hosts])[0]
    assert _equal(
        [following], [next(Loader(mixture_config(corpus, streams=2), vocabulary, LENGTH, 8, SEED, state=state))]
    )


def test_other_seeds_give_other_batches(reference, corpus, vocabulary):
    other = _take(Loader(mixture_config(corpus), vocabulary, LENGTH, ROWS, SEED + 1), 12)
    assert not any(np.array_equal(a["inputs"], b["inputs"]) for a, b in zip(reference, other, strict=True))


def test_every_drawn_document_comes_out_exactly_once(corpus, vocabulary):
    """The k-th draw of stream v is position 4 k + v of the shuffled source, over several epochs."""
    loader = Loader(mixture_config(corpus, streams=4), vocabulary, LENGTH, ROWS, SEED)
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
    settings = mixture_config(corpus)
    sources = {name: dataclasses.replace(source, weight=weights[name]) for name, source in settings.sources.items()}
    loader = Loader(dataclasses.replace(settings, sources=sources), vocabulary, LENGTH, ROWS, SEED)
    rows, tokens = np.zeros(3), np.zeros(3)
    for batch in _take(loader, 100):
        rows += np.bincount(batch["sources"], minlength=3)
        np.add.at(tokens, batch["sources"], (batch["segment_ids"] > 0).sum(1))
    shares = np.array(list(weights.values())) / 3.5
    assert (np.abs(rows - 800 * shares) <= 2 + np.log2(800) / 2).all()  # the bound of the mixture
    # documents here take up to half a row, so every source fills 93 % of its rows or more, which bounds its share
    assert (tokens / (rows * LENGTH) > 0.93).all()
    assert (np.abs(tokens / tokens.sum() - shares) < 0.03).all()


def test_sources_without_weight_are_left_out(corpus, vocabulary):
    settings = mixture_config(corpus)
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
    """Twenty records: 3 and 11 cannot be used, and a byte of record 7 is changed in the file."""
    rng = np.random.default_rng(0)
    with RecordWriter(tmp_path / "aligned", "train") as writer:
        for number in range(20):
            record = speech_record(rng, number, 12)
            if number == 3:
                record = dataclasses.replace(record, spans_ms=record.spans_ms + 10_000)
            if number == 11:
                record = dataclasses.replace(record, text="")
            writer.write_bytes(record.to_bytes())
    file = tmp_path / "aligned" / "train-00000-of-00001.array_record"
    data = bytearray(file.read_bytes())
    (used,) = np.nonzero(np.frombuffer(data, np.uint8))  # the records in order, then padding and the index
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
    assert len(bad) > 20
    assert loader.skipped == {"aligned": 3}  # records, however often they are drawn
    assert len(caplog.records) == 3
    for message in (
        "'utterance-3': word 0",
        "'utterance-11': empty transcript",
        "array_record: record 7 cannot be read",
    ):
        assert message in caplog.text
    # the count continues after resuming, and no unusable record is in a batch
    resumed = Loader(
        _aligned(bad_corpus, on_bad_record="skip", streams=1), vocabulary, LENGTH, 2, SEED, state=loader.state()
    )
    assert resumed.skipped == loader.skipped
    next(resumed)
    assert resumed.skipped == loader.skipped
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


def test_truncated_file_is_an_error_or_skipped_and_counted(tmp_path, vocabulary, caplog):
    make_records(tmp_path)
    file = tmp_path / "speech" / "train-00001-of-00003.array_record"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(RecordError, match="source 'speech': .*train-00001-of-00003.*truncated"):
        Loader(mixture_config(tmp_path), vocabulary, LENGTH, 2, SEED)
    with caplog.at_level(logging.WARNING):
        loader = Loader(mixture_config(tmp_path, on_bad_record="skip", streams=1), vocabulary, LENGTH, 2, SEED)
    assert "all its records will be skipped: source 'speech': " in caplog.text
    _take(loader, 20)
    order = Shuffle(40, SEED, "speech")
    drawn = [order[draw][0] for draw in range(loader.state()["0"]["sources"]["speech"]["next"])]
    # 40 records in three files of 14, 13 and 13
    assert sum(14 <= record < 27 for record in drawn) > 13
    assert loader.skipped == {"speech": 13, "aligned": 0, "prose": 0}


def test_source_without_usable_records_is_an_error(tmp_path, vocabulary):
    with RecordWriter(tmp_path, "train") as writer:
        for number in range(5):
            writer.write(text_record(np.random.default_rng(number), number, 20))
    loader = Loader(_aligned(tmp_path, on_bad_record="skip"), vocabulary, LENGTH, 2, SEED)
    with pytest.raises(RecordError, match="1000 unusable records in a row, .*needs speech units"):
        next(loader)


def test_errors_of_a_worker_reach_the_loader(bad_corpus, vocabulary):
    loader = Loader(_aligned(bad_corpus, workers=1), vocabulary, LENGTH, 2, SEED)
    with loader, pytest.raises(RecordError, match="source 'aligned': "):
        _take(loader, 40)


def test_held_out_batches_have_every_record_once(corpus, vocabulary):
    settings = mixture_config(corpus)
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


def test_counts_that_do_not_divide_and_missing_records_are_refused(corpus, vocabulary, tmp_path):
    for settings, length, host, hosts, message in (
        ({"streams": 3}, LENGTH, 0, 1, "3 streams do not divide the global batch of 8 rows"),
        ({}, LENGTH, 0, 3, "3 hosts do not divide the 8 streams"),
        ({}, LENGTH, 2, 2, "host 2 of 2"),
        ({}, 8, 0, 1, "sequence length of 8 is too short"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(mixture_config(corpus, **settings), vocabulary, length, 8, 0, host, hosts)
    with pytest.raises(RecordError, match="source 'speech': .*metadata.json: not found"):
        Loader(mixture_config(tmp_path), vocabulary, LENGTH, 8, 0)
    with pytest.raises(ValueError, match="source 'other' has no held_out_split"):
        next(held_out_batches(mixture_config(corpus), vocabulary, LENGTH, 4, "other"))


def test_states_that_do_not_fit_are_refused(corpus, vocabulary, tmp_path):
    loader = Loader(mixture_config(corpus), vocabulary, LENGTH, ROWS, SEED)
    next(loader)
    state = loader.state()
    one_host = {number: state[number] for number in ("0", "1", "2", "3")}
    fewer = {name: source for name, source in mixture_config(corpus).sources.items() if name != "prose"}
    make_records(tmp_path, records=41)
    for settings, length, rows, saved, message in (
        (mixture_config(corpus), LENGTH, ROWS, one_host, "has 4 streams, stream 4 is not among them"),
        (
            mixture_config(corpus),
            LENGTH,
            4,
            state,
            "is of {'streams': 8, 'sequence_length': 256}, this run has {'streams': 4",
        ),
        (mixture_config(corpus), 128, ROWS, state, "this run has {'streams': 8, 'sequence_length': 128}"),
        (DataConfig(fewer), LENGTH, ROWS, state, "this run has \\['aligned', 'speech'\\]"),
        (
            mixture_config(tmp_path),
            LENGTH,
            ROWS,
            state,
            "does not hold the records that the saved data state was made with",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(settings, vocabulary, length, rows, SEED, state=saved)
