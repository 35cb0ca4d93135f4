"""What keeps a Prefect server, its workers and its deployments going on one machine; `llm-fuse up` is its command."""
