"""The released speech networks in PyTorch, as functions of a released file's tensors under their released names.

They are written from docs/formats.md, apart from `spirit_jax.models` and the mapping tables, so that `verify` and the
tests compare the JAX networks with an independent implementation. PyTorch is imported when a function runs, because a
conversion does not need it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from spirit_jax.convert.components.hubert import conv_feature_layers

if TYPE_CHECKING:
    import torch

State = Mapping[str, "torch.Tensor"]


def tensors(state: Mapping[str, Any]) -> dict[str, "torch.Tensor"]:
    """NumPy arrays by name as PyTorch tensors; floating-point types become float32."""
    import torch

    def tensor(array: np.ndarray) -> "torch.Tensor":
        is_integer = array.dtype.kind in "biu"  # the kind of bfloat16 is V
        return torch.from_numpy(np.array(array) if is_integer else np.array(array, np.float32))

    return {name: tensor(array) for name, array in state.items()}


def _weight(state: State, name: str, gain_axis: int = 0) -> "torch.Tensor":
    """A weight, computed from its two factors if it has weight norm with a gain for each index of `gain_axis`."""
    import torch

    new = f"{name}.parametrizations.weight.original"
    for gain, direction in ((f"{name}.weight_g", f"{name}.weight_v"), (f"{new}0", f"{new}1")):
        if gain in state:
            v = state[direction]
            axes = [axis for axis in range(v.ndim) if axis != gain_axis]
            return v * (state[gain] / torch.linalg.vector_norm(v, dim=axes, keepdim=True))
    return state[f"{name}.weight"]


def _conv(state: State, name: str, x_bct: "torch.Tensor", **options: int) -> "torch.Tensor":
    import torch

    return torch.nn.functional.conv1d(x_bct, _weight(state, name), state.get(f"{name}.bias"), **options)


def _linear(state: State, name: str, x: "torch.Tensor") -> "torch.Tensor":
    return x @ _weight(state, name).T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: "torch.Tensor") -> "torch.Tensor":
    import torch

    scale = state[f"{name}.weight"]
    return torch.nn.functional.layer_norm(x, scale.shape, scale, state[f"{name}.bias"])


def hubert(state: State, model_cfg: Mapping[str, Any], layer: int, audio_br: "torch.Tensor") -> "torch.Tensor":
    """The output [B, T, D] of a layer, counted from 1, of a fairseq HuBERT."""
    import torch

    functional, pre_norm = torch.nn.functional, model_cfg.get("layer_norm_first", False)
    x = audio_br[:, None]
    default = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    for i, (channels, _, stride) in enumerate(conv_feature_layers(model_cfg.get("conv_feature_layers", default))):
        name = f"feature_extractor.conv_layers.{i}"
        x = _conv(state, f"{name}.0", x, stride=stride)
        if f"{name}.2.1.weight" in state:
            x = _norm(state, f"{name}.2.1", x.mT).mT
        elif f"{name}.2.weight" in state:
            x = functional.group_norm(x, channels, state[f"{name}.2.weight"], state[f"{name}.2.bias"])
        x = functional.gelu(x)
    x = _norm(state, "layer_norm", x.mT)
    if "post_extract_proj.weight" in state:
        x = _linear(state, "post_extract_proj", x)
    y, position = x.mT, "encoder.pos_conv."
    if model_cfg.get("conv_pos_batch_norm"):
        statistics = (state[f"{position}0.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        y, kernel, bias = (
            functional.batch_norm(y, *statistics),
            state[f"{position}1.weight"],
            state[f"{position}1.bias"],
        )
    else:
        kernel, bias = _weight(state, f"{position}0", gain_axis=2), state[f"{position}0.bias"]
    width, groups = kernel.shape[2], model_cfg.get("conv_pos_groups", 16)
    y = functional.conv1d(y, kernel, bias, padding=width // 2, groups=groups)[..., : x.shape[1]]
    x = x + functional.gelu(y).mT
    if not pre_norm:
        x = _norm(state, "encoder.layer_norm", x)
    heads = model_cfg.get("encoder_attention_heads", 12)
    for j in range(layer):
        name = f"encoder.layers.{j}."
        h = _norm(state, f"{name}self_attn_layer_norm", x) if pre_norm else x
        query_key_value = (
            _linear(state, f"{name}self_attn.{p}_proj", h).unflatten(2, (heads, -1)).transpose(1, 2) for p in "qkv"
        )
        h = functional.scaled_dot_product_attention(*query_key_value).transpose(1, 2).flatten(2)
        x = x + _linear(state, f"{name}self_attn.out_proj", h)
        x = x if pre_norm else _norm(state, f"{name}self_attn_layer_norm", x)
        h = _norm(state, f"{name}final_layer_norm", x) if pre_norm else x
        x = x + _linear(state, f"{name}fc2", functional.gelu(_linear(state, f"{name}fc1", h)))
        x = x if pre_norm else _norm(state, f"{name}final_layer_norm", x)
    return x


def linear_quantizer(state: State, x: "torch.Tensor") -> "torch.Tensor":
    """Logits [..., units + 1] of features [..., D]."""
    import torch

    for i in (0, 2):
        x = torch.nn.functional.leaky_relu(_linear(state, str(i), x), 0.01)
    return _linear(state, "4", x)


def centroid_distances(centers_kd: "torch.Tensor", x_td: "torch.Tensor") -> "torch.Tensor":
    """Squared distances [T, K] between features and centroids, summed over the differences."""
    return (x_td[:, None] - centers_kd).square().sum(-1)


def _resnet(state: State, name: str, params: Mapping[str, Any], x: "torch.Tensor", reverse: bool) -> "torch.Tensor":
    depth, growth = params["depth"], params.get("dilation_growth_rate", 1)
    scale = depth**-0.5 if params.get("res_scale") else 1.0
    for d in range(depth):
        dilation = growth ** (depth - 1 - d if reverse else d)
        h = _conv(state, f"{name}.model.{d}.model.1", x.relu(), dilation=dilation, padding=dilation)
        x = x + scale * _conv(state, f"{name}.model.{d}.model.3", h.relu())
    return x


def vqvae_latents(state: State, config: Mapping[str, Any], f0_voiced_b2t: "torch.Tensor") -> "torch.Tensor":
    """The encoder's output [B, N, E] before quantization."""
    params, x = config["encoder_params"], f0_voiced_b2t
    stride, name = params["strides_t"][0], "encoder.level_blocks.0.model"
    for i in range(params["downs_t"][0]):
        x = _conv(state, f"{name}.{i}.0", x, stride=stride, padding=stride // 2)
        x = _resnet(state, f"{name}.{i}.1", params, x, reverse=False)
    return _conv(state, f"{name}.{params['downs_t'][0]}", x, padding=1).mT


def vqvae_decode(state: State, config: Mapping[str, Any], codes_bn: "torch.Tensor") -> "torch.Tensor":
    """The F0 and voicing [B, 2, T] that codes decode to."""
    import torch

    params, name = config["decoder_params"], "decoder.level_blocks.0.model"
    stride = params["strides_t"][0]
    x = _conv(state, f"{name}.0", state["vq.level_blocks.0.k"][codes_bn].mT, padding=1)
    for i in range(1, params["downs_t"][0] + 1):
        x = _resnet(state, f"{name}.{i}.0", params, x, reverse=bool(params.get("reverse_decoder_dilation")))
        up = state[f"{name}.{i}.1.weight"], state[f"{name}.{i}.1.bias"]
        x = torch.nn.functional.conv_transpose1d(x, *up, stride, stride // 2)
    return _conv(state, "decoder.out", x, padding=1)


def fcpe(state: State, config: Mapping[str, Any], audio_br: "torch.Tensor") -> "torch.Tensor":
    """The likelihood [B, R // 160 + 1, 360] of each pitch bin, for clips that are longer than the reflected padding."""
    import librosa
    import torch

    functional, mel = torch.nn.functional, config["mel"]
    window, hop = mel["n_fft"], mel["hop_size"]
    pad = (window - hop) // 2
    x = functional.pad(audio_br, (pad, max(pad, window - audio_br.shape[1] - pad)), "reflect")
    spectrum = torch.stft(x, window, hop, window=torch.hann_window(window), center=False, return_complex=True)
    magnitude = (spectrum.real**2 + spectrum.imag**2 + 1e-9).sqrt()
    filters = librosa.filters.mel(
        sr=mel["sr"], n_fft=window, n_mels=mel["num_mels"], fmin=mel["fmin"], fmax=mel["fmax"]
    )
    x = (torch.from_numpy(filters) @ magnitude).clamp(min=1e-5).log()
    x = torch.cat([x, x[..., -1:]], -1)
    x = functional.group_norm(
        _conv(state, "input_stack.0", x, padding=1), 4, state["input_stack.1.weight"], state["input_stack.1.bias"]
    )
    x = _conv(state, "input_stack.3", functional.leaky_relu(x, 0.01), padding=1).mT
    for i in range(config["model"]["n_layers"]):
        name = f"net.encoder_layers.{i}.conformer.net."
        h = functional.glu(_conv(state, f"{name}2", _norm(state, f"{name}0", x).mT), 1)
        kernel = state[f"{name}4.conv.weight"]
        h = functional.conv1d(
            h, kernel, state[f"{name}4.conv.bias"], padding=kernel.shape[2] // 2, groups=kernel.shape[0]
        )
        x = x + _conv(state, f"{name}6", functional.silu(h)).mT
    return _linear(state, "output_proj", _norm(state, "norm", x)).sigmoid()


def hifigan(
    state: State, config: Mapping[str, Any], streams: Mapping[str, "torch.Tensor"], **constants: "torch.Tensor"
) -> "torch.Tensor":
    """The audio [B, R] of a vocoder.

    Args:
        streams: codes [B, T] of every frame for each of the tables `dict`, `f0_dict` and `style_dict`.
        constants: rows [B] of the tables `spkr` and `style`.
    """
    import torch

    functional = torch.nn.functional
    inputs = [state[f"{name}.weight"][codes] for name, codes in streams.items()]
    inputs += [state[f"{name}.weight"][rows][:, None].expand_as(inputs[0]) for name, rows in constants.items()]
    x = _conv(state, "conv_pre", torch.cat(inputs, -1).mT, padding=3)
    blocks = list(zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True))
    for i, (rate, width) in enumerate(zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True)):
        up = _weight(state, f"ups.{i}"), state[f"ups.{i}.bias"]
        x = functional.conv_transpose1d(functional.leaky_relu(x, 0.1), *up, rate, (width - rate) // 2)
        total = torch.zeros_like(x)
        for j, (size, dilations) in enumerate(blocks):
            name, y = f"resblocks.{i * len(blocks) + j}.", x
            for d, dilation in enumerate(dilations):
                geometry = {"dilation": dilation, "padding": (size * dilation - dilation) // 2}
                h = _conv(state, f"{name}convs1.{d}", functional.leaky_relu(y, 0.1), **geometry)
                y = y + _conv(state, f"{name}convs2.{d}", functional.leaky_relu(h, 0.1), padding=(size - 1) // 2)
            total = total + y
        x = total / len(blocks)
    return _conv(state, "conv_post", functional.leaky_relu(x, 0.01), padding=3).tanh()[:, 0]


def log_durations(state: State, units_bt: "torch.Tensor") -> "torch.Tensor":
    """The vocoder's log durations [B, T] of deduplicated units."""
    x = state["dict.weight"][units_bt].mT
    for i in (1, 2):
        padding = 1 if i == 2 else (state["dur_predictor.conv1.0.weight"].shape[2] - 1) // 2
        x = _conv(state, f"dur_predictor.conv{i}.0", x, padding=padding).relu()
        x = _norm(state, f"dur_predictor.ln{i}", x.mT).mT
    return _linear(state, "dur_predictor.proj", x.mT)[..., 0]
