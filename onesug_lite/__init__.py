"""OneSug-lite: generative query suggestion, one stage a module.

Data flows one way: ``log`` -> ``pairs`` -> ``align`` -> ``rqvae`` -> ``sid_search`` -> ``prompt`` -> ``generator``
-> ``reward`` -> ``preference`` -> ``decode`` -> ``policy`` -> ``metrics``. ``pipeline`` chains the stages and ``store``
keeps their results.
"""

__version__ = "0.1.0"
