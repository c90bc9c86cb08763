"""A trained backbone in use: any-to-any generation, features, retrieval, transfer, the page, bundles, exports."""
