"""Steps, one file each with one `@step`, and the rooms that they stand on. Imports go one way between rooms, too.

`step` (caching, claims, Prefect), `artifacts` (what steps hand to each other), `runtime` (where and how)
`storage`     results in the store: objects, artifacts, claims, unfinished parts
`running`     an attempt: plans, progress, stopping, devices, child processes, retries
`models`      the hub, model folders, weights, whose code may run
`corpora`     documents: sources, duplicates, cutting, reading
`formats`     distributions on disk
`engines`     what turns a model and tokens into distributions
`training`    batches, loss, checkpoints, the process that trains
`evaluation`  costs of held-out text, tasks, programs, the smoke gate
`library`     what manifests tell together: lineage, garbage, copies between stores
`preflight`, `report`, `publishing`  what is known before, shown after, and leaves the house
"""
