"""Pitch, style, classifier and vocoder trained by the job on a few synthetic clips, killed, resumed and used."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from spirit_jax.audio import load_audio, save_audio
from spirit_jax.checkpoint import flatten, load_arrays, unflatten
from spirit_jax.core import buckets
from spirit_jax.core.bucket_cache import local_copy
from spirit_jax.core.buckets import BucketJobError
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.working_copy import UPLOADING
from spirit_jax.corpora.utterance import Utterance
from spirit_jax.models.hifigan import fold_weight_norm
from spirit_jax.models.hifigan_config import DiscriminatorConfig, HifiGanConfig, MelConfig
from spirit_jax.models.vqvae_config import VQVAEConfig
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.parallel.sharding import HostShare
from spirit_jax.speech import SpeechTokenizer, SpeechTokenizerConfig, train_speech_tokenizer
from spirit_jax.speech.loading import load_pitch_encoder, load_style_encoder, load_vocoder
from spirit_jax.speech_training.compile import abstract_batch
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.job import open_clips, run
from spirit_jax.speech_training.part import Context
from spirit_jax.speech_training.pitch_config import PitchTraining
from spirit_jax.speech_training.style_config import ClassifierTraining, StyleTargets, StyleTraining
from spirit_jax.speech_training.vocoder import VocoderPart
from spirit_jax.speech_training.vocoder_config import VocoderTraining
from spirit_jax.training.config import CheckpointConfig, LoopConfig, OptimizerConfig
from tests.support.sounds import buzz

SPEAKERS = ("ada", "bob")


def loop(steps):
    return LoopConfig(steps=steps, log_every=1, evaluate_every=steps, sample_every=steps)


ENCODER = Wav2Vec2Config(
    conv_layers=((8, 10, 5), (8, 4, 4), (8, 4, 4), (8, 4, 4)),
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=16,
    position_kernel=4,
    position_groups=2,
)
PITCH = PitchTraining(
    network=VQVAEConfig(codes=4, embedding_size=4, width=4, depth=1), samples=2560, rows=2, loop=loop(4)
)
VOCODER = VocoderTraining(
    network=HifiGanConfig(
        upsample_rates=(10, 8, 8),
        upsample_kernel_sizes=(20, 16, 16),
        upsample_initial_channel=16,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
        embedding_dim=4,
        duration_hidden_dim=4,
    ),
    discriminators=DiscriminatorConfig(periods=(5,), scales=1, channels=32),
    mel=MelConfig(bands=8, window=512, hop=256),
    samples=2560,
    rows=2,
    measured_clips=1,
    sampled_clips=1,
    loop=loop(4),
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2)
STYLE = StyleTraining(
    encoder=ENCODER,
    projection_size=4,
    targets=StyleTargets(clusters=3),
    samples=16_000,
    shortest=8000,
    rows=2,
    optimizer=OPTIMIZER,
    loop=loop(2),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A manifest of eight voiced clips of two voices, and of one each that is short, silent and unvoiced."""
    folder = tmp_path_factory.mktemp("clips")
    rng, lines = np.random.default_rng(0), []

    def add(name, audio, speaker):
        save_audio(folder / f"{name}.wav", audio)
        lines.append({"id": name, "audio": f"{name}.wav", "speaker": speaker, "text": "a word"})

    for number in range(8):
        low = 110 if number % 2 else 220
        audio = buzz(np.geomspace(low, low * 1.4, SAMPLE_RATE * 3 // 2), 1.5) + rng.normal(
            0, 0.01, SAMPLE_RATE * 3 // 2
        )
        add(f"clip-{number}", audio.astype(np.float32), SPEAKERS[number % 2])
    add("short", buzz(200.0)[:1400], "ada")
    add("silent", np.zeros(SAMPLE_RATE, np.float32), "ada")
    add("noise", rng.normal(0, 0.1, SAMPLE_RATE).astype(np.float32), "ada")
    manifest = folder / "clips.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


@pytest.fixture(scope="module")
def encoders(corpus, tmp_path_factory):
    """A checkpoint directory with a speech tokenizer from scratch."""
    directory = tmp_path_factory.mktemp("encoders")
    clips = [
        Utterance(f"clip-{number}", corpus.parent / f"clip-{number}.wav", "", transcript_required=False)
        for number in range(8)
    ]
    sizes = SpeechTokenizerConfig(phonetic_units=10, pitch_units=4, style_units=2)
    train_speech_tokenizer(clips, sizes, directory, progress=False)
    return directory


def settings(corpus, directory, **sections):
    return TrainSpeechConfig(
        run_directory=str(directory),
        corpora=[str(corpus)],
        validation_fraction=0.3,
        checkpoint=CheckpointConfig(every=2),
        **sections,
    )


def prepared(corpus, directory, part):
    """A part that is ready to be trained in a run directory."""
    train, held_out = open_clips(settings(corpus, directory))
    context = Context(
        run=directory,
        directory=directory / part.name,
        train=train,
        held_out=held_out,
        seed=0,
        data={},
        spike_sigmas=6.0,
    )
    return part.prepare(context)


def batch_shapes(part):
    """Shapes and types of the arrays of a batch, by the part's outline."""
    return {name: (array.shape, array.dtype) for name, array in abstract_batch(part.outline(), part.rows).items()}


def arrays_of(directory, part):
    flat = flatten(load_arrays(directory / "speech_tokenizer" / part))
    return {path: np.asarray(array) for path, array in flat.items()}


def assert_equal_parts(first, second, part):
    one, two = arrays_of(first, part), arrays_of(second, part)
    assert one.keys() == two.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, two[path], err_msg=path)


@pytest.fixture(scope="module")
def trained_pitch(corpus, tmp_path_factory):
    """A run that has trained a pitch encoder without a stop."""
    directory = tmp_path_factory.mktemp("pitch")
    run(settings(corpus, directory, pitch=PITCH))
    return directory


def test_pitch_is_trained_resumed_bit_for_bit_and_used(corpus, trained_pitch, tmp_path, capsys):
    run(settings(corpus, tmp_path / "parts", pitch=dataclasses.replace(PITCH, loop=loop(2))))
    printed = "".join(capsys.readouterr())
    assert "clips have no voiced frame or cannot be used: skipped" in printed
    run(settings(corpus, tmp_path / "parts", pitch=PITCH))
    assert_equal_parts(trained_pitch, tmp_path / "parts", "pitch")
    pitch = load_pitch_encoder(trained_pitch)
    audio = load_audio(corpus.parent / "clip-0.wav")
    units = pitch.encode_batch([audio])[0]
    assert len(units) == (audio.size // 80 + 1) // 16
    assert pitch.unit_count == 4
    assert units.max() < 4
    records = [json.loads(line) for line in (trained_pitch / "pitch/metrics.jsonl").read_text().splitlines()]
    last = {name: value for record in records for name, value in record.items()}
    assert {"validation/f0_error_hz", "validation/f0_error_cents", "validation/voicing_error"} <= last.keys()


def test_a_run_in_a_bucket_is_continued_there(corpus, trained_pitch, bucket):
    """Each part of the run finds in the bucket what the one before has left."""
    url = f"{bucket}/runs/pitch"
    run(settings(corpus, url, pitch=dataclasses.replace(PITCH, loop=loop(2))))
    assert any(name.startswith("pitch/checkpoints/2/") for name in buckets.list_objects(url))
    run(settings(corpus, url, pitch=PITCH))
    assert_equal_parts(trained_pitch, local_copy(url), "pitch")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["/speech_tokenizer/pitch/", "/pitch/checkpoints/4/", "/pitch/contours/"])
def test_an_upload_that_stops_in_the_middle_leaves_nothing_that_the_next_run_uses(
    corpus, trained_pitch, bucket, lost, monkeypatch
):
    write_object, url = buckets.write_object, f"{bucket}/runs/pitch"

    def write_unless_lost(place, content, **options):
        if lost in place and not place.endswith(".json"):
            raise BucketJobError(f"{place}: the process was killed")
        return write_object(place, content, **options)

    with monkeypatch.context() as patch:
        patch.setattr(buckets, "write_object", write_unless_lost)
        with pytest.raises(BucketJobError, match="was killed"):
            run(settings(corpus, url, pitch=PITCH))
    assert "pitch/metrics.jsonl" in buckets.list_objects(url)
    run(settings(corpus, url, pitch=PITCH))
    assert_equal_parts(trained_pitch, local_copy(url), "pitch")
    assert UPLOADING not in buckets.list_objects(url)


@pytest.mark.slow
def test_a_vocoder_is_trained_resumed_bit_for_bit_and_speaks(corpus, encoders, tmp_path):
    config = dataclasses.replace(VOCODER, encoders=str(encoders))
    run(settings(corpus, tmp_path / "whole", vocoder_base=config))
    quiet = dataclasses.replace(config, measured_clips=0, sampled_clips=0)
    run(settings(corpus, tmp_path / "parts", vocoder_base=dataclasses.replace(quiet, loop=loop(2))))
    run(settings(corpus, tmp_path / "parts", vocoder_base=quiet))
    assert_equal_parts(tmp_path / "whole", tmp_path / "parts", "vocoder_base")
    vocoder = load_vocoder(tmp_path / "whole", "base")
    assert [vocoder.speaker_index(name) for name in (*SPEAKERS, 2)] == [0, 1, 1]
    units = SpeechTokenizer.from_pretrained(encoders, "base").encode(load_audio(corpus.parent / "clip-1.wav"))
    audio = vocoder.decode(units, speaker="bob", predict_durations=False)
    assert audio.size == 640 * len(units.hubert)
    assert np.isfinite(audio).all()
    records = [json.loads(line) for line in (tmp_path / "whole/vocoder_base/metrics.jsonl").read_text().splitlines()]
    last = {name: value for record in records for name, value in record.items()}
    assert {"validation/mel", "evaluation/mel_distance_db", "evaluation/voicing_error"} <= last.keys()
    assert (tmp_path / "whole/vocoder_base/samples/4/0.wav").is_file()
    assert (tmp_path / "whole/speech_tokenizer/vocoder_base/released/weights.json").is_file()

    other = dataclasses.replace(config, init_from=str(tmp_path / "whole"))
    rule = prepared(corpus, tmp_path, VocoderPart("base", other)).rule
    stored = unflatten(arrays_of(tmp_path / "whole", "vocoder_base"))
    started, expected = (flatten(fold_weight_norm(tree)) for tree in (rule.initial, stored))
    assert started.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(started[path], array, atol=1e-6, err_msg=path)


def test_an_expressive_vocoder_reads_all_streams(corpus, encoders, tmp_path):
    part = VocoderPart("expressive", dataclasses.replace(VOCODER, encoders=str(encoders)))
    ready = prepared(corpus, tmp_path, part)
    network = ready.rule.network
    assert (network.num_embeddings, network.num_f0_tokens, network.num_style_tokens) == (10, 4, 2)
    batch = next(ready.batches(HostShare(0, 1), None))
    assert batch["audio_br"].shape == (2, 2560)
    assert batch_shapes(part) == {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert [batch[name].max() > 0 for name in ("units_bt", "pitch_bt")] == [True, True]
    ready.finish(jax.jit(ready.rule.init)(jax.random.key(0)).params)
    units = SpeechTokenizer.from_pretrained(encoders).encode(load_audio(corpus.parent / "clip-1.wav"))
    vocoder = load_vocoder(tmp_path, "expressive")
    assert vocoder.decode(units, predict_durations=False).size == 640 * len(units.hubert)


def test_a_vocoder_hears_chosen_speakers_alone(corpus, encoders, tmp_path):
    config = dataclasses.replace(VOCODER, encoders=str(encoders), speakers=["bob"])
    ready = prepared(corpus, tmp_path, VocoderPart("base", config))
    assert ready.rule.network.num_speakers == 0
    clips = [load_audio(corpus.parent / f"clip-{number}.wav") for number in range(1, 8, 2)]
    scaled = [clip * (0.95 / np.abs(clip).max()) for clip in clips]
    crops = np.stack([clip[start : start + 2560] for clip in scaled for start in range(0, clip.size - 2559, 640)])
    batches = ready.batches(HostShare(0, 1), None)
    for _ in range(5):
        for audio in next(batches)["audio_br"]:
            assert np.abs(crops - audio).max(1).min() < 1e-4
    strange = dataclasses.replace(config, speakers=["eve"])
    with pytest.raises(
        SpiritError, match=r"speakers: the training clips have no speaker 'eve'; they have 'ada', 'bob'"
    ):
        prepared(corpus, tmp_path, VocoderPart("base", strange))


@pytest.mark.slow
def test_a_style_encoder_learns_clusters_and_a_classifier_labels(corpus, tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [f"clip-{number},{'high' if number % 2 == 0 else 'low'}" for number in range(8)]
    labels.write_text("id,label\n" + "\n".join(rows) + "\n")
    shared = {name: getattr(STYLE, name) for name in ("encoder", "projection_size", "samples", "shortest", "rows")}
    classifier = ClassifierTraining(
        **shared, labels=str(labels), on_bad_label="skip", optimizer=OPTIMIZER, loop=loop(30)
    )
    run(settings(corpus, tmp_path / "run", style=STYLE, classifier=classifier))
    style = load_style_encoder(tmp_path / "run")
    assert style.unit_count == 3
    assert len(style.encode_batch([load_audio(corpus.parent / "clip-0.wav")])[0]) == 2
    assert (tmp_path / "run/classifier/hugging_face/model.safetensors").is_file()
    config = json.loads((tmp_path / "run/classifier/hugging_face/config.json").read_text())
    assert config["id2label"] == {"0": "high", "1": "low"}
    records = [json.loads(line) for line in (tmp_path / "run/classifier/metrics.jsonl").read_text().splitlines()]
    last = {name: value for record in records for name, value in record.items()}
    assert last["evaluation/clip_accuracy"] >= 0.5
    assert last["train/accuracy"] == 1.0
    stopped = dataclasses.replace(classifier, on_bad_label="stop")
    with pytest.raises(SpiritError, match=r"labels\.csv: .* clips have no label there"):
        run(settings(corpus, tmp_path / "other", classifier=stopped))


def test_clips_without_a_voice_cannot_teach_pitch(corpus, tmp_path):
    manifest = corpus.parent / "noise.jsonl"
    manifest.write_text(json.dumps({"id": "noise", "audio": "noise.wav"}) + "\n")
    config = dataclasses.replace(settings(manifest, tmp_path, pitch=PITCH), validation_fraction=0.0)
    with pytest.raises(SpiritError, match="none of 1 clips has a voiced frame"):
        run(config)


def test_a_vocoder_needs_clips_as_long_as_a_crop(corpus, encoders, tmp_path):
    config = dataclasses.replace(VOCODER, encoders=str(encoders), samples=64_000)
    with pytest.raises(SpiritError, match="they need 64000 samples"):
        run(settings(corpus, tmp_path, vocoder_base=config))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VocoderTraining(samples=1000), "multiple of 640"),
        (lambda: VocoderTraining(peak=1.5), "peak must lie"),
        (lambda: VocoderTraining(on_bad_label="ignore"), "stop or skip"),
        (lambda: PitchTraining(samples=1000), "multiple of the 1280 samples"),
        (lambda: PitchTraining(f0="fcpe"), "fcpe_from"),
        (lambda: PitchTraining(network=VQVAEConfig(residual_scale=0.7)), "residual_scale must be 1 or"),
        (lambda: StyleTraining(samples=15_000), "multiple of the 16000 samples"),
        (lambda: StyleTargets(clusters=101), r"1\.\.100"),
        (lambda: DiscriminatorConfig(channels=48), "power of two"),
        (lambda: MelConfig(window=1000), "multiple of hop"),
    ],
)
def test_configs_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()
