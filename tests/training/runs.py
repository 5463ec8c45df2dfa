"""Short runs on a tiny model, for the tests of the loop."""

import json
from pathlib import Path

from trimode.training.config import parse_train_config
from trimode.training.trainer import Trainer

TEXT = "The sea keeps what it takes and gives back what it does not want. "


def config_of(base, source, output, **overrides):
    fields = {
        "output": str(output),
        "model": str(base),
        "data": {"files": [str(source)], "sequence_length": 128},
        "train": "everything",
        "step": {"blocks": {"block_length": 8}},
        "optimiser": {"learning_rate": 3e-3, "warmup_steps": 5},
        "evaluation": {"every": 0},
        "steps": 6,
        "batch_size": 2,
        "save_every": 3,
    }
    return parse_train_config(fields | overrides)


def run(config):
    trainer = Trainer(config, progress=False)
    return trainer, trainer.run()


def weights(trainer):
    return {item.name: item.parameter.detach().clone() for item in trainer.trained}


def metrics(config):
    lines = (Path(config.output) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
