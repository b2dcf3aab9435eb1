"""Text models of the Hugging Face hub that open_clip builds CLIPs on, by their sizes, so that no hub is asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from m2clip.errors import InputError
from m2clip.towers.weight_sources import kept_file

_ROBERTA: dict[str, Any] = {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 514}
_ROBERTA |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_MT5: dict[str, Any] = {"vocab_size": 250112, "d_kv": 64, "feed_forward_proj": "gated-gelu", "dropout_rate": 0.1}
_NLLB: dict[str, Any] = {"vocab_size": 256206, "d_model": 1024, "activation_function": "relu", "scale_embedding": True}
_NLLB |= {"max_position_embeddings": 1024, "encoder_attention_heads": 16, "decoder_attention_heads": 16}

# Names on the hub: class of the configuration in transformers, and what differs from its defaults.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-base": ("RobertaConfig", {**_ROBERTA, "vocab_size": 50265}),
    "xlm-roberta-base": ("XLMRobertaConfig", {**_ROBERTA, "vocab_size": 250002}),
    "xlm-roberta-large": ("XLMRobertaConfig", {**_ROBERTA, **_LARGE, "vocab_size": 250002}),
    "google/mt5-base": ("MT5Config", {**_MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}),
    "google/mt5-xl": ("MT5Config", {**_MT5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32}),
    "facebook/nllb-200-distilled-600M": (
        "M2M100Config",
        {**_NLLB, "encoder_layers": 12, "decoder_layers": 12, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096},
    ),
    "facebook/nllb-200-distilled-1.3B": (
        "M2M100Config",
        {**_NLLB, "encoder_layers": 24, "decoder_layers": 24, "encoder_ffn_dim": 8192, "decoder_ffn_dim": 8192},
    ),
}


@contextmanager
def described(name: str) -> Iterator[str]:
    """A folder, for the time of the context, with the configuration of a text model as transformers reads it.

    Args:
        name: on the hub; a folder is taken as it is.

    Raises:
        InputError: transformers is not installed; a model that is neither known nor on this machine.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(f"its text model {name} needs transformers: pip install transformers") from None
    if kept_file(name, "config.json") is not None or name not in SIZES:
        found = kept_file(name, "config.json")
        if found is None:
            raise InputError(f"its text model {name} is not on this machine, and its sizes are not known")
        yield str(found.parent)
        return
    kind, sizes = SIZES[name]
    with tempfile.TemporaryDirectory() as folder:
        getattr(transformers, kind)(**sizes).save_pretrained(folder)
        yield folder
