"""A character GPT from scratch: a transformer that learns Python's reference manual, and goes on writing it.

Run: python examples/char_gpt.py   (about 30 seconds on 2 cores)
"""

from pydoc_data.topics import topics

import jax
import numpy as np
import optax

import funcnet as fn

PIECE, BATCH, STEPS = 64, 8, 500


def main():
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))  # long topics contain short ones
    characters = sorted(set(text))
    place = {character: i for i, character in enumerate(characters)}
    ids = np.array([place[character] for character in text], np.int32)
    train, test = np.split(ids, [len(ids) * 9 // 10])

    # A small Llama. Each layer sees the last 64 characters, so a text may be longer than a piece.
    transformer = fn.nets.transformer
    config = transformer.Config(
        vocabulary=len(characters),
        context=1024,
        layers=4,
        heads=4,
        d=128,
        d_hidden=344,
        norm="rms",
        mlp="swiglu",
        positions="rope",
        bias=False,
        windows=(PIECE,),
    )
    params = transformer.init(jax.random.key(0), config)
    print(f"{len(text):,} characters, {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters")

    def loss(params, ids, key):
        logits = transformer.apply(params, ids[:, :-1], config)
        return fn.cross_entropy.apply(logits, ids[:, 1:]).mean()

    def pieces(ids, starts):
        return ids[starts[:, None] + np.arange(PIECE + 1)]

    rate = optax.schedules.warmup_cosine_decay_schedule(0.0, 3e-3, 50, STEPS, 3e-4)
    optimizer = optax.adamw(rate, weight_decay=0.1)
    state = fn.train.init(params, optimizer, key=jax.random.key(1))
    step = fn.train.make_step(loss, optimizer)
    batches = fn.train.batches(np.arange(len(train) - PIECE), BATCH, seed=0)
    for number, starts in zip(range(STEPS), batches, strict=False):
        state, metrics = step(state, pieces(train, starts))
        if number % 50 == 0:
            print(f"step {number:<5}loss {float(metrics['loss']):.3f} nats per character")

    held_out = pieces(test, np.arange(0, len(test) - PIECE, PIECE))
    final = float(jax.jit(loss)(state.params, held_out, None))
    print(f"held-out loss {final:.3f}")
    assert final < 2.2, final

    prompt, key = "The for statement ", jax.random.key(2)
    ids = [place[character] for character in prompt]
    new = fn.generate(state.params, ids, config, max_new_tokens=400, temperature=0.8, key=key)
    print(prompt + "".join(characters[i] for i in new.tolist()))


if __name__ == "__main__":
    main()
