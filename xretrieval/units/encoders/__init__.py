"""Speech encoders: sound to features at a fixed rate. `encoder.py` is what they share, and each other file is a family."""
