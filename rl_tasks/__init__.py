"""Tasks whose metric is a return. Importing this registers them: `make("rl_tasks:cartpole-v0")`."""

from . import tasks as tasks
