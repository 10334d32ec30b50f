"""What `python -m benchmarks.gpu` measures: the sizes for a card, and tiny ones that run on any CPU in a minute."""

import dataclasses

from spirit_jax.models.fcpe import FCPEConfig
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config


@dataclasses.dataclass(frozen=True)
class TrainSizes:
    """A training step. Rows are of packed documents."""

    model: LlamaConfig
    length: int
    rows: tuple[int, ...]
    """Rows of a step to try, most first. The first number that fits in memory is measured."""
    document: int
    """Mean tokens of a document."""
    steps: int
    """Measured steps."""


@dataclasses.dataclass(frozen=True)
class GenerateSizes:
    """Greedy generation with random weights."""

    model: LlamaConfig
    batches: tuple[int, ...]
    prompt: int
    new: int
    repeats: int


@dataclasses.dataclass(frozen=True)
class SpeechSizes:
    """Unit extraction and the vocoder."""

    hubert: Wav2Vec2Config
    layer: int
    """The layer of HuBERT whose output is quantized."""
    style: Wav2Vec2Config
    fcpe: FCPEConfig
    vocoder: HifiGanConfig
    clips: int
    seconds: float
    """Length of each clip."""
    repeats: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """All that is measured."""

    matmul: int
    """Rows and columns of the matrices whose product measures the card's peak."""
    copy: int
    """Bytes of the array whose copy measures the memory's speed."""
    train: TrainSizes
    lora: TrainSizes
    lora_rank: int
    generate: GenerateSizes
    speech: SpeechSizes


_BFLOAT16 = {"dtype": "bfloat16", "vocab_size": 32768}
_LARGE = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=24,
    num_attention_heads=16,
    num_key_value_heads=16,
    **_BFLOAT16,
)
"""1.4 B parameters: float32 weights, gradients and Adam's moments take 22 GB."""
_SEVEN_B = LlamaConfig(param_dtype="bfloat16", **_BFLOAT16)
_SMALL = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    dtype="bfloat16",
)
_SMALL_WAV2VEC2 = Wav2Vec2Config(
    conv_layers=((16, 10, 5),) + ((16, 3, 2),) * 4 + ((16, 2, 2),) * 3,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=64,
    position_kernel=16,
    position_groups=4,
)
_STYLE_LAYERS = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2

FULL = Sizes(
    matmul=8192,
    copy=2**31,
    train=TrainSizes(_LARGE, length=4096, rows=(16, 12, 8, 6, 4, 2, 1), document=700, steps=8),
    lora=TrainSizes(
        dataclasses.replace(_SEVEN_B, remat="mlp"), length=2048, rows=(16, 8, 4, 2, 1), document=700, steps=5
    ),
    lora_rank=32,
    generate=GenerateSizes(_SEVEN_B, batches=(1, 16, 64), prompt=448, new=64, repeats=2),
    speech=SpeechSizes(
        hubert=Wav2Vec2Config(),
        layer=11,
        style=dataclasses.replace(Wav2Vec2Config(), conv_layers=_STYLE_LAYERS),
        fcpe=FCPEConfig(),
        vocoder=HifiGanConfig(),
        clips=64,
        seconds=10.0,
        repeats=3,
    ),
)

TINY = Sizes(
    matmul=256,
    copy=2**20,
    train=TrainSizes(_SMALL, length=128, rows=(2, 1), document=40, steps=2),
    lora=TrainSizes(dataclasses.replace(_SMALL, param_dtype="bfloat16"), length=64, rows=(1,), document=40, steps=2),
    lora_rank=4,
    generate=GenerateSizes(dataclasses.replace(_SMALL, param_dtype="bfloat16"), (1, 2), prompt=20, new=4, repeats=1),
    speech=SpeechSizes(
        hubert=_SMALL_WAV2VEC2,
        layer=1,
        style=dataclasses.replace(_SMALL_WAV2VEC2, conv_layers=_SMALL_WAV2VEC2.conv_layers[:-1]),
        fcpe=FCPEConfig(hidden_size=32, num_layers=1),
        vocoder=HifiGanConfig(
            embedding_dim=16,
            duration_hidden_dim=16,
            upsample_initial_channel=32,
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1,),),
        ),
        clips=2,
        seconds=1.0,
        repeats=1,
    ),
)
