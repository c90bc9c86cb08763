"""The contract of a modality: spec, layouts, hooks, sources, the registry and its handles."""
