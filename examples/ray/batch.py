"""Answers to a file of prompts on a Ray cluster. The same command continues a run that was killed.

    python batch.py prompts.jsonl answers     # answers/*.json, an object a line, in any order

Each row needs an id of its own, a text or a whole number. `answers.done` holds the ids of rows that
are done; with other options or another input take another directory.
"""

import argparse

import ray
from ray.data.checkpoint import CheckpointConfig

from trimode.ray import generate

parser = argparse.ArgumentParser()
parser.add_argument("input")
parser.add_argument("output")
parser.add_argument("--model", default="smollm2-135m-instruct")
parser.add_argument("--mode", default="auto")
parser.add_argument("--max-tokens", type=int, default=256)
parser.add_argument("--actors", type=int, default=2)
parser.add_argument("--num-cpus", type=float, default=1)
parser.add_argument("--batch-size", type=int)
asked = parser.parse_args()

ray.init()
ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
    id_column="id", checkpoint_path=f"{asked.output}.done", delete_checkpoint_on_success=False
)
answers = generate(
    ray.data.read_json(asked.input),
    actors=asked.actors,
    num_cpus=asked.num_cpus,
    batch_size=asked.batch_size,
    model=asked.model,
    mode=asked.mode,
    max_tokens=asked.max_tokens,
)
answers.write_json(asked.output)
