"""The shipped configs of `train_speech` resolve, and their networks have the published sizes."""

import importlib.util
import math
import pathlib
import subprocess
import sys

import pytest
import yaml

from spirit_jax import config
from spirit_jax.convert.components.hubert import encoder_shapes
from spirit_jax.speech.config import SpeechTokenizerConfig
from spirit_jax.speech_training.compile import compile_parts
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.parts import parts
from spirit_jax.training.checks import RunError

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "speech"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_resolves_and_names_its_parts(path):
    settings = config.load(TrainSpeechConfig, path)
    assert config.from_dict(TrainSpeechConfig, config.to_dict(settings)) == settings
    names = [part.name for part in parts(settings)]
    assert names
    assert all(name.startswith(tuple(yaml.safe_load(path.read_text()))) for name in names)


@pytest.mark.parametrize(
    ("name", "millions", "hop"),
    # The paper's table 1 says 95 M and 317 M. The weights that fairseq released hold 94.4 M and 315.4 M in the encoder;
    # 25 Hz adds one convolution of width 2.
    [("hubert_base_50hz", 94.37, 320), ("hubert_base_25hz", 94.90, 640), ("hubert_large_50hz", 315.43, 320)],
)
def test_networks_have_the_published_sizes(name, millions, hop):
    settings = config.load(TrainSpeechConfig, CONFIGS / f"{name}.yaml")
    assert settings.hubert_1 is not None
    encoder = settings.hubert_1.encoder
    assert encoder.hop == hop
    assert sum(map(math.prod, encoder_shapes(encoder).values())) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hubert_1.shortest", "100"], "shortest 100 must lie between a frame of 720 samples and samples 32000"),
        (["--hubert_1.encoder.position_norm", "batch"], "a batch norm of positions is not trained here"),
        (["--hubert_1.encoder.project_features", "true"], "encoder.project_features must be false, as in fairseq"),
        (
            ["--hubert_1.encoder.conv_layers", "[[120, 160, 80], [192, 2, 2], [192, 2, 2]]"],
            "source cepstra: expected an encoder with a frame of 720 samples each 640, found one of 400 each 320",
        ),
        (["--units.units", "501"], "units.units must lie in 2..500, found 501"),
        (["--quantizer.augment.stretch", "[1.2, 0.8]"], "augment.stretch must be two ascending numbers in 0.25..4"),
        (["--hubert_1.loop.evaluate_tasks", "mini"], "tasks of language models"),
    ],
)
def test_bad_values_are_refused_with_what_is_expected(options, message):
    with pytest.raises(config.ConfigError) as refused:
        config.load(TrainSpeechConfig, CONFIGS / "tiny.yaml", options)
    assert message in str(refused.value)


def test_help_starts_no_jax():
    script = (
        "import sys\nfrom spirit_jax.train_speech import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=120)


def test_a_config_without_a_step_to_compile_is_refused():
    settings = TrainSpeechConfig(run_directory="runs/x", corpora=["spirit_mini"], scratch=SpeechTokenizerConfig())
    with pytest.raises(RunError, match="no section whose step could be compiled"):
        list(compile_parts(settings, "v5e:4x4"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'spirit_jax[tpu]'")
def test_a_step_compiles_for_a_pod():
    settings = config.load(TrainSpeechConfig, CONFIGS / "pitch.yaml")
    ((name, report),) = compile_parts(settings, "v5e:4x4")
    assert name == "pitch"
    assert report.mesh["fsdp"] == 16
    assert report.memory.spare > 0.9
    assert report.model_flops == report.flops > 0
