"""The service: HTTP in front of the pipeline, jobs that are never lost, keys, prices; dialects of known clients."""
