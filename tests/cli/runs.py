"""Runs that have not been trained, for commands that read a run."""

import dataclasses

from funcnet import store, tasks
from funcnet.tasks import _run


def untrained(folder, task, config=None, **options):
    """A run folder with the parameters that training would begin with.

    Args:
        folder: made.
        task: the task's name.
        config: of a smaller net than the task's.
        options: of the task.
    """
    module = getattr(tasks, task)
    chosen = module.Options(**options)
    prepared = module.prepare(chosen)
    config = config or prepared.config
    facts = {"options": dataclasses.asdict(chosen), "training": dataclasses.asdict(module.Training())}
    folder.mkdir()
    _run.write_config(folder, task, config, data=prepared.data, seed=chosen.seed, **facts)
    store.save(folder / "params.safetensors", module.NET.init(_run.keys(chosen.seed)[0], config))
    return folder
