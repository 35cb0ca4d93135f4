"""Distributions on disk: shards of ragged rows in narrow columns."""
