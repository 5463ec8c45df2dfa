"""trimode on Ray: replicas of the server (`app`), and answers to many prompts (`generate`).

Needs the extra `ray`.
"""

from trimode.ray.dataset import Generate, generate
from trimode.ray.replica import app

__all__ = ["Generate", "app", "generate"]
