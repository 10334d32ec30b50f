"""Tiny random networks with a CTC head, in the layouts in which people have them."""

import json

import torch
import transformers

SMALL = {
    "conv_dim": (16,) * 7,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LETTERS = dict(zip(["<pad>", "<s>", "</s>", "<unk>", "|", *"etaonihsrdlumwcfgypbvk'xjqz"], range(32), strict=True))


def save_network(folder, hubert=False, stable=False, outputs=32):
    """A tiny random network in the layout of a Hugging Face directory; returns it."""
    options = {
        **SMALL,
        "feat_extract_norm": "layer" if stable else "group",
        "conv_bias": stable,
        "do_stable_layer_norm": stable,
        "vocab_size": outputs,
    }
    name = "Hubert" if hubert else "Wav2Vec2"
    torch.manual_seed(0)
    network = getattr(transformers, f"{name}ForCTC")(getattr(transformers, f"{name}Config")(**options)).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # norms and biases start at one and zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(LETTERS))
    return network


def save_torchaudio(folder):
    """The same network as MMS_FA's file: torchaudio's names, no config; returns the transformers network."""
    network = save_network(folder / "hugging_face", stable=True, outputs=31)
    beginnings = {
        "wav2vec2.feature_extractor.": "feature_extractor.",
        "wav2vec2.feature_projection.": "encoder.feature_projection.",
        "wav2vec2.encoder.": "encoder.transformer.",
        "lm_head.": "aux.",
    }
    state = {}
    for name, tensor in network.state_dict().items():
        for beginning, other in beginnings.items():
            if name.startswith(beginning):
                name = name.replace(beginning, other, 1)
                name = name.replace("parametrizations.weight.original0", "weight_g")
                name = name.replace("parametrizations.weight.original1", "weight_v")
                state[name] = tensor
    (folder / "mms").mkdir()
    torch.save(state, folder / "mms/model.pt")
    return network
