"""Training steps of the models against neuralforecast, and language models with replace_sdpa."""
