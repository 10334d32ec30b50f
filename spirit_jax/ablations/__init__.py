"""Ablations: models that differ in one thing, trained over several seeds, evaluated and compared with intervals."""
