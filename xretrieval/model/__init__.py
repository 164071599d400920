"""The tower: extended embedding, decoder blocks, pooling, and the model directory."""
