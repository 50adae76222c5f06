"""Pretrained weights: checkpoints of transformers to params and back, without torch.

    params, config = fn.hub.load(folder)        # config.json and model.safetensors
    fn.hub.save(folder, params, config)

`files` reads and writes safetensors, `names` says which tensor is which leaf, and each family of models
(gpt2, llama, mamba, bert, vit) has one file with its config.json and its names, read by `fields`. `text` is
for the command line: a decoder and its tokenizer. `silero` has the weights of a detector of speech, `onnx`
reads its files, and `recurrent` converts the weights of one lstm, gru or rnn.
"""

from funcnet.hub import silero
from funcnet.hub.files import read_safetensors, write_safetensors
from funcnet.hub.folder import config, load, save

__all__ = ["config", "load", "read_safetensors", "save", "silero", "write_safetensors"]
