"""Machines: deployments, automations, images and manifests. Names flows by dotted path, imports no project code."""
