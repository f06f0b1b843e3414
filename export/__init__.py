"""From a trained generator to pictures in production. Nothing here imports torch at the top: a sampler needs none."""
