"""Keeping a model fresh: the registry of champions, and the rows that arrive after them.

Reading order: `state` (champion, watermarks, claim), `decision` (why a champion became one),
`transitions` (how the state may change), `history` (what the steps of each run recorded),
`registry` (both of them in a store), `ownership` and `kubeflow_runs` (whose claim it is, and
whether that run still lives), `outcomes`, `champions`. Then the rows: `collecting`, `files`,
`windows`, `fresh` (which no run has taken), `conform` (bring them into the champion's form),
`golden`, `outputs`.
"""

from kubestill.runtime.retraining.registry import Registry, open_registry
from kubestill.runtime.retraining.state import Champion, Claim, Golden, Part, State, Window

__all__ = ["Champion", "Claim", "Golden", "Part", "Registry", "State", "Window", "open_registry"]
