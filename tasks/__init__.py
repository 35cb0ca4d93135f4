"""Steps, and what they stand on: each step is one file with one `@step`; the rest are their shared rooms.

`artifacts` (what steps hand to each other), `step` (caching, claims, Prefect), `store` (files), `shards` and
`documents` (formats), `models`, `engines`, `trainer` (transformers), `lineage` and `garbage` (reading manifests).
"""
