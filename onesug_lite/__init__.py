"""OneSug-lite: generative query suggestion, one stage a module.

Data flows one way: ``log`` -> ``pairs`` -> ``align`` -> ``rqvae`` -> ``prefix_search`` -> ``prompt`` -> ``generator``
-> ``reward`` -> ``preference`` -> ``decode`` -> ``policy`` -> ``metrics``; ``cascade`` is the baseline beside them.
``pipeline`` chains the stages and ``store`` keeps their results.
"""

import os

# One thread a process: models this small lose more by waiting for a second thread than it brings, many times more on a
# busy machine. Two processes side by side use two cores. Read when torch is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

__version__ = "0.1.0"
