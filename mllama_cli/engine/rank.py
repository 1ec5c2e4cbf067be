"""The process of rank 1 or higher: ``python -m mllama_cli.engine.rank DESCRIPTOR DEVICE``.

The context of its GPU is created while torch is imported.
"""

import sys
from multiprocessing.connection import Connection

from mllama_cli.system.collection import paused_collection
from mllama_cli.system.cuda_context import create_context

if __name__ == "__main__":
    create_context(sys.argv[2])
    with paused_collection():
        from mllama_cli.engine.follower import follow

    follow(Connection(int(sys.argv[1])))
