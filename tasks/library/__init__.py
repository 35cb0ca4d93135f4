"""What the manifests of a store tell together: lineage, provenance, licences, and what may be removed or copied."""
