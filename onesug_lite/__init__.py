"""OneSug-lite: generative query suggestion, one stage a module.

Data flows one way: ``log`` -> ``pairs`` -> ``align`` -> ``rqvae`` -> ``sid_search`` -> ``prompt`` -> ``generator``
-> ``reward`` -> ``preference`` -> ``decode`` -> ``policy`` -> ``metrics``. ``pipeline`` chains the stages and ``store``
keeps their results.
"""

import os

# Waiting threads sleep instead of spinning: two trainings side by side on two cores then cost about twice one training,
# not many times as much. Read by OpenMP when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
