"""From annotation files to training batches.

In the order in which one box passes: `datasets` (files -> `store`; records of a store; names), `hierarchy`,
`dataset_mapper` (record -> model input), `samplers` (which image next), `build` (which batch, with which
random numbers; loaders).
"""
