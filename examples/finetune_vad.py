"""Fine-tune a detector of speech on one's own labelled recordings: first its decoder, then the rest too.

Run: python examples/finetune_vad.py [FOLDER]   (about 30 seconds on 2 cores)

FOLDER holds recordings, and beside each talk.wav a talk.txt with a line "start end", in seconds, for every
stretch in which someone speaks, as Audacity exports labels. What comes of it is in tuned.safetensors, for
`funcnet listen --weights`. Without FOLDER whistles in noise are made here, which become speech.
Needs: pip install --no-deps silero-vad   (the weights; without them it begins at random ones)
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax

import funcnet as fn
from funcnet.errors import MissingExtraError

vad, RATE, FRAMES = fn.nets.vad, 16_000, 62  # a piece of sound is 2 s


def labelled(folder):
    """Pieces of the recordings [n, t], and for each frame whether someone speaks in its middle [n, f]."""
    pieces, labels = [], []
    for path in sorted(Path(folder).glob("*.txt")):
        samples = fn.recordings.read(next(p for p in path.parent.glob(f"{path.stem}.*") if p != path), RATE)
        spans = [
            [float(v) for v in line.split()[:2]] for line in path.read_text().splitlines() if line.strip()
        ]
        middles = (np.arange(len(samples) // 512) + 0.5) * 512 / RATE
        speech = sum((middles >= start) & (middles < end) for start, end in spans) + np.zeros(len(middles))
        n = len(middles) // FRAMES
        pieces.append(samples[: n * FRAMES * 512].reshape(n, FRAMES * 512))
        labels.append(np.minimum(speech, 1)[: n * FRAMES].reshape(n, FRAMES))
    return np.concatenate(pieces), np.concatenate(labels).astype(np.float32)


def whistles(n):
    """In noise, from one frame to another a tone that rises."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, FRAMES - 20, (n, 1))
    labels = (np.arange(FRAMES) >= start) & (np.arange(FRAMES) < start + rng.integers(10, 20, (n, 1)))
    t = np.arange(FRAMES * 512) / RATE
    tone = np.sin(2 * np.pi * (rng.uniform(800, 2000, (n, 1)) * t + 200 * t**2))
    noise = rng.normal(0, 0.02, (n, FRAMES * 512))
    return (0.1 * tone * np.repeat(labels, 512, 1) + noise).astype(np.float32), labels.astype(np.float32)


def main():
    pieces, labels = labelled(sys.argv[1]) if len(sys.argv) > 1 else whistles(160)
    order = np.random.default_rng(1).permutation(len(pieces))
    held_out, training = np.split(order, [len(order) // 4])
    try:
        params, config = fn.hub.silero.load()
    except MissingExtraError as error:
        print(f"{error}\nso it begins at random weights")
        config = vad.Config()
        params = vad.init(jax.random.key(0), config)
    logits = jax.jit(lambda params, samples: vad.apply(params, samples, config)[0])

    def report(what):
        found = np.concatenate([logits(params, pieces[i : i + 1]) for i in held_out]) > 0
        print(f"{what}: {(found == labels[held_out]).mean():.1%} of the held-out frames are right")

    report("before")
    metrics = {}
    stages = {"the decoder": ("lstm", "head"), "the encoder too": ("encoder", "lstm", "head")}
    for (what, names), rate in zip(stages.items(), (1e-3, 3e-4), strict=True):
        frozen = params  # of the step, a constant

        def loss(trained, batch, frozen=frozen):
            samples, labels = batch
            found, _ = vad.apply({**frozen, **trained}, samples, config)
            return fn.binary_cross_entropy.apply(found, labels).mean()

        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        state = fn.train.init({name: params[name] for name in names}, optimizer, key=jax.random.key(2))
        step = fn.train.make_step(loss, optimizer)
        batches = fn.train.batches((pieces[training], labels[training]), size=8, seed=3, epochs=4)
        for batch in batches:
            state, metrics = step(state, batch)
        params = {**params, **state.params}
        report(f"trained {what}, loss {float(metrics['loss']):.3f}")
    if len(sys.argv) > 1:
        fn.save("tuned.safetensors", params)


if __name__ == "__main__":
    main()
